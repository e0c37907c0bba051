"""Bad command lines, bad files and folders that cannot be written."""

from __future__ import annotations

from tests.bad_input.case import CALCULATOR, Case, command

LONG = "x" * 300
FILES = "no such file, and no shipped config of that name. …"
NOWHERE = ("/proc/x", "run.yaml/x", "/dev/null/x", LONG)


def _cannot(what: str) -> str:
    return f"{what} is …, where no folder can be written: …. Name a folder that can."


def _override(text: str, said: str) -> Case:
    return command(f"train run.yaml {text}", said)


WHOLE = "expected a whole number >= 1, got"

COMMANDS: list[Case] = [
    *[command(f"train run.yaml --storage {folder}", _cannot("run.storage")) for folder in (*NOWHERE, "run.yaml")],
    command(f"train run.yaml --name {LONG}", "run.name: expected text of at most 200 characters, got '…'."),
    *[
        command(f"train run.yaml --name {name}", f"run.name: expected the name of a folder, without '/', got '{name}'.")
        for name in ("a/b", "../x", "/tmp/x")
    ],
    command("train run.yaml --name 5", "run.name: expected text, got 5."),
    *[command(f"export nowhere {folder}", _cannot("export: the folder")) for folder in NOWHERE],
    *[command(f"warmstart {CALCULATOR} {folder}", _cannot("out")) for folder in NOWHERE[:3]],
    command(f"warmstart {CALCULATOR} {LONG}", _cannot("out")),
    *[
        command(f"warmstart {CALCULATOR} {name}", "out=…: it must be the name of a folder to write.")
        for name in ("/", "''")
    ],
    command(f"warmstart {CALCULATOR} run.yaml", "out='run.yaml' exists and is not an earlier warm start …"),
    *[
        command(f"warmstart {CALCULATOR} out --lr {lr}", "lr is …; allowed: float, > 0, <= 10")
        for lr in ("nan", "0", "inf")
    ],
    command(f"warmstart {CALCULATOR} out --lr fast", "argument --lr: invalid float value: 'fast'; see `…`"),
    command(f"warmstart {CALCULATOR} out --temperature nan", "temperature is nan; allowed: float, >= 0, <= 100"),
    command(f"warmstart {CALCULATOR} out --temperature=-1", "temperature is -1.0; allowed: float, >= 0, <= 100"),
    command(f"warmstart {CALCULATOR} out --seed=-1", "seed is -1; allowed: int, >= 0, <= 4.29497e+09"),
    command(f"warmstart {CALCULATOR} out --max-minutes nan", "max_minutes is nan; allowed: float, >= 0, <= 1e+06"),
    command(f"warmstart {CALCULATOR} out --target nan", "target_success=nan: must be above 0 and at most 1."),
    command(f"warmstart {CALCULATOR} out --target 2", "target_success=2.0: must be above 0 and at most 1."),
    command(f"warmstart {CALCULATOR} out --device gpu", "device is 'gpu'; allowed: the name of a torch device, e.g. …"),
    command(f"warmstart {CALCULATOR} out --architecture llama", "architecture='llama': Allowed: qwen3, qwen3_moe."),
    *[
        command(
            f"warmstart {CALCULATOR} out --sizes hidden_size={size}", "sizes: hidden_size is …; allowed: int, >= 1, …"
        )
        for size in ("big", "0", "-1", "1.5", "[1]", "true", "null", "1000000000000")
    ],
    command(
        f"warmstart {CALCULATOR} out --sizes hiden_size=5", "sizes: 'hiden_size' is not a size of a model. Did you …"
    ),
    command(f"warmstart {CALCULATOR} out --sizes x", "--sizes 'x': expected key=value."),
    command("warmstart Nowhere-v0 out", "environment 'Nowhere-v0' is not registered with Gymnasium. …"),
    *[command(f"train {file}", f"config …: {FILES}") for file in ("nope.yaml", "''", "/", LONG, ".")],
    command(
        "train calculater", "config 'calculater': no such file, and no shipped config of that name. Did you mean …"
    ),
    command("train /proc/self/mem", "config '/proc/self/mem': it cannot be read (…)."),
    command("show nope", f"config 'nope': {FILES}"),
    command("cp calculator /proc/x.yaml", "cp: '/proc/x.yaml' cannot be written: …."),
    command(f"cp calculator {LONG}", "cp: '… (str) cannot be written: …."),
    _override("=5", "override '=5': expected section.key=value, e.g. training.lr=2e-5."),
    _override("training=5", "override 'training=5': expected section.key=value, e.g. training.lr=2e-5."),
    _override("training.lr=[", "override 'training.lr=[' line 1: …"),
    _override("trainin.lr=5", "override 'trainin.lr=5': no section 'trainin'. Did you mean 'training'?"),
    _override("training.lrr=5", "run.yaml: training.lrr: no such setting. Did you mean 'lr'?"),
    _override(
        "training.group_size.x=5", "override 'training.group_size.x=5': training.group_size is a number (2), so it …"
    ),
    _override("training.lr=.nan", "training.lr is nan; allowed: float or list, >= 0, <= 10"),
    _override("training.lr=1e400", "training.lr is inf; allowed: float or list, >= 0, <= 10"),
    _override("training.lr='1e-5'", "run.yaml: training.lr: got the text '1e-5'; write it without quotes."),
    _override("training.lr=[1]", "training.lr is [1]; allowed: a number, or a schedule [[0, first], …"),
    _override(f"training.group_size=0x{'f' * 30}", "training.group_size is …; allowed: int, >= 1, <= 65536"),
    _override("training.clip_high=1e300", "training.clip_high is 1e+300; allowed: float, >= 0, <= 1e+06"),
    _override(
        "training.reward_part_weights=x", "run.yaml: training.reward_part_weights: got the text 'x'; it takes dict …"
    ),
    _override(
        "generation.temperature=1e-30", "generation.temperature is 1e-30; allowed: float, >= 0.01, <= 100, or 0.0"
    ),
    _override("env_runners.num_env_runners=1.5", "env_runners.num_env_runners is 1.5; allowed: a whole number, …"),
    _override(
        "env_runners.num_env_runners=two", "run.yaml: env_runners.num_env_runners: got the text 'two'; it takes int …"
    ),
    _override("env_runners.env_runner_cls=x", "env_runners.env_runner_cls is 'x'; allowed: LanguageEnvRunner, or a …"),
    _override(
        "learners.learner_class=x", "learners.learner_class is 'x'; allowed: LanguageLearner, or a subclass of it."
    ),
    _override("learners.num_learners=-1", "learners.num_learners is -1; allowed: a whole number, >= 0, <= 100000."),
    _override("debugging.seed=-1", "debugging.seed is -1; allowed: a whole number, >= 0, <= 4290000000."),
    _override(
        "environment.env_config=null", "run.yaml: environment.env_config is None; allowed: a mapping whose keys …"
    ),
    _override("environment.env_config=[1]", "run.yaml: environment.env_config is [1]; allowed: a mapping whose keys …"),
    _override("environment.env=5", "environment: got 5; set config.environment(env=...) to a Gymnasium id such as …"),
    _override(
        "rl_module.model_config=5", "rl_module.model_config is 5; allowed: a mapping whose keys are names (text)."
    ),
    _override(
        "rl_module.model_config.path=nowhere/at/all",
        "model path 'nowhere/at/all' is not there yet; make it with `gspo-rllib warmstart …",
    ),
    _override("evaluation.evaluation_duration_unit=days", "evaluation.evaluation_duration_unit is 'days'; allowed: …"),
    _override("framework.framework=tf2", "framework.framework is 'tf2'; allowed: 'torch'. Models are torch's: …"),
    _override("run.iterations=0", f"run.iterations: {WHOLE} 0."),
    _override("run.iterations=many", f"run.iterations: {WHOLE} 'many'."),
    _override("run.iterations=1.5", f"run.iterations: {WHOLE} 1.5."),
    _override("run.iterations=true", f"run.iterations: {WHOLE} True."),
    _override("run.iterations=99999999999999999999", f"run.iterations: {WHOLE} 99999999999999999999."),
    _override("run.minutes=.inf", "run.minutes: expected a number > 0, got inf."),
    _override("run.success=.nan", "run.success: expected a share in (0, 1], got nan."),
    _override("run.record_groups=maybe", "run.record_groups: expected true or false, got 'maybe'."),
    _override("run.storage=null", "run.storage: expected text, got None."),
    _override("run.algorithm=GSPOO", "run.yaml: run.algorithm is 'GSPOO'; allowed: … Did you mean 'GSPO'?"),
    _override("run.evaluate_tasks=some", f"run.evaluate_tasks: {WHOLE} 'some'."),
    _override(
        "run.evaluate_tasks=64",
        "run.yaml: run.evaluate_tasks is 64, but nothing is evaluated: set run.evaluate_every, too, or leave it out.",
    ),
    _override(
        "generation.engine=transformers generation.engine_options.max_batch_token=3",
        "generation.engine_options['max_batch_token']: the engine 'transformers' has no such option. Did you mean …",
    ),
    _override("run.foo=1", "run.yaml: run.foo: no such setting. Allowed: …"),
    command(
        "train run.yaml --resume nowhere", "checkpoint 'nowhere': there is no such folder. Give what save_to_path …"
    ),
    command("train run.yaml --frobnicate", "unrecognized arguments: --frobnicate; see `…`"),
    command("train run.yaml --iterations", "argument --iterations: expected one argument; see `…`"),
    command("train", "the following arguments are required: CONFIG; see `…`"),
    command("trian run.yaml", "argument COMMAND: invalid choice: 'trian' (choose from …"),
    command("evaluate nowhere", "'nowhere': there is no such folder. A checkpoint is what training wrote, e.g. …"),
    command("evaluate nowhere --episodes 0", "--episodes: expected a whole number >= 1, got 0."),
    command(f"evaluate nowhere --episodes 1{'0' * 30}", "--episodes: expected a whole number <= 2147483647, got 1…"),
    command("evaluate nowhere --episodes 1.5", "argument --episodes: invalid int value: '1.5'; see `…`"),
    command("evaluate nowhere --json x.txt", "--json: 'x.txt' must end in .jsonl or .parquet, which says how …"),
    command(
        "evaluate nowhere --json /proc/x.jsonl", "--json: '/proc/x.jsonl' cannot be written: …. Name another file."
    ),
    command("evaluate nowhere --json nowhere/x.jsonl", "--json: there is no folder 'nowhere' to write 'x.jsonl' into."),
    command("rollout nowhere --samples=-1", "--samples: expected a whole number >= 1, got -1."),
    command("rollout nowhere --groups x.txt", "--groups: 'x.txt' must end in .jsonl: it holds a group on each line."),
    command(
        "rollout nowhere --groups /proc/x.jsonl", "--groups: '/proc/x.jsonl' cannot be written: …. Name another file."
    ),
    command("sweep run.yaml --trials-at-once 0", "--trials-at-once: expected a whole number >= 1, got 0."),
    command("sweep run.yaml --storage /proc/x", _cannot("run.storage")),
    command(
        "settings zzzqqq", "no setting is called anything like 'zzzqqq'. `gspo-rllib settings` prints all of them."
    ),
    command("settings --algorithm GPSO", "--algorithm 'GPSO': unknown. Did you mean 'GSPO'?"),
    command("check-env Nowhere-v0", "environment 'Nowhere-v0' is not registered with Gymnasium. …"),
    command(f"check-env {CALCULATOR} --env-config x", "--env-config 'x': expected key=value."),
]
