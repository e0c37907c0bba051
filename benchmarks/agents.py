"""What it costs to train an agent over HTTP instead of an environment, and whether both sample the same.

    .venv/bin/python benchmarks/agents.py --model models/seed [--engine vllm] [--goals] [--only bridge server]

Sameness: Calculator played as an agent, in process and over HTTP, against the env runner, token for token. Throughput:
sessions with replies of 64 tokens over HTTP, to clients in a process beside (``agent_client``), against the same
prompts given to the engine directly, in turn. Many: sessions that are all open at once. Bridge: the prompt of a call in
a long conversation. Server: its start. Load: what it withstands.

Other programs may use the machine meanwhile: of ratios of wall time the median of the pairs counts, and beside stands
that of CPU.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

# As a run computes with a small model: an engine that has both cores leaves none to a server.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import psutil
from agent_load import withstands
from measure import alternate, median, ratios
from safetensors.torch import load_file, save_file

from gspo_rllib.agents.endpoint import Endpoint
from gspo_rllib.agents.rendering import MessageRenderer
from gspo_rllib.agents.session import ChatRequest, Sampled, Session
from gspo_rllib.cli.policy_source import give_weights
from gspo_rllib.configs import load_config
from gspo_rllib.engines.protocol import Generation, GenerationRequest
from gspo_rllib.env_runners.language_env_runner import LanguageEnvRunner
from gspo_rllib.model_folder import load_tokenizer
from gspo_rllib.types import turns

CALCULATOR = {"env": "gspo_rllib.envs:gspo_rllib/Calculator-v0", "env_config": {"operations": 6}}
ENV_AGENT = "gspo_rllib.agents.env_agent"
GROUPS = [f"0/{n}" for n in range(8)]
SESSIONS, TURNS, REPLY_TOKENS = 32, 10, 64
AT_ONCE = 200
CONTEXT = 24_000
"""Tokens of the long conversation."""


def opened(
    arguments: argparse.Namespace, agent: dict[str, Any] | None, *, slots: int = 64, **changes: Any
) -> LanguageEnvRunner:
    """An env runner that holds the model's weights; of Calculator as an environment where there is no agent."""
    config = load_config("calculator", [f"rl_module.model_config={{path: {arguments.model}}}"])
    config.env_runners(num_envs_per_env_runner=slots)
    config.generation(engine=arguments.engine, **changes)
    if agent is not None:
        config.env, config.env_config = None, {}
        config.agent(**agent, tasks=[CALCULATOR])
    runner: LanguageEnvRunner = config.env_runner_cls(config=config)
    give_weights(runner, config)
    return runner


def sameness(arguments: argparse.Namespace) -> dict[str, float]:
    """Trajectories of 64 that an agent samples like the env runner, and how far log-probabilities are apart."""
    measured: dict[str, float] = {}
    expected: list[Any] = []
    for name, play in (("env", None), ("in process", f"{ENV_AGENT}:play"), ("http", f"{ENV_AGENT}:play_over_http")):
        runner = opened(arguments, None if play is None else {"play": play})
        runner.sample(group_ids=["warm up"])
        started = time.perf_counter()
        episodes = runner.sample(group_ids=GROUPS)
        measured[f"{name}, seconds"] = time.perf_counter() - started
        runner.stop()
        expected = expected or episodes
        measured[f"{name}, trajectories alike"] = sum(map(_alike, episodes, expected))
        measured[f"{name}, largest log-prob gap"] = max(map(_gap, episodes, expected))
    return measured


def _alike(episode: Any, other: Any) -> bool:
    ids = [[(t.prompt_token_ids.tolist(), t.action_token_ids.tolist()) for t in turns(e)] for e in (episode, other)]
    return ids[0] == ids[1]


def _gap(episode: Any, other: Any) -> float:
    logp = [np.concatenate([t.action_logp for t in turns(e)]) for e in (episode, other)]
    return float(np.abs(logp[0] - logp[1]).max()) if logp[0].shape == logp[1].shape else float("nan")


@contextmanager
def clients(arguments: argparse.Namespace, replies: int, at_a_time: int, **changes: Any) -> Iterator[Clients]:
    """An env runner, and beside it a process that plays all of its trajectories; see ``agent_client``."""
    with tempfile.TemporaryDirectory() as folder:
        model, addresses = _that_never_ends(arguments.model, f"{folder}/model"), f"{folder}/addresses"
        longer = argparse.Namespace(**vars(arguments) | {"model": model})
        agent = {"workers": "external", "addresses": addresses}
        runner = opened(longer, agent, slots=at_a_time, temperature=5.0, **changes)
        command = [sys.executable, f"{Path(__file__).parent}/agent_client.py", addresses, str(replies), str(at_a_time)]
        with subprocess.Popen(command) as process:
            try:
                yield Clients(runner, psutil.Process(process.pid))
            finally:
                process.kill()
                runner.stop()


class Clients(NamedTuple):
    """An env runner and who plays its trajectories."""

    runner: LanguageEnvRunner
    process: psutil.Process

    def cpu_s(self) -> float:
        """CPU seconds of the clients."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


def throughput(arguments: argparse.Namespace) -> dict[str, float]:
    """Time that the engine alone takes ÷ that over HTTP, and what a call costs the server."""
    with clients(arguments, TURNS, SESSIONS, max_tokens_per_turn=REPLY_TOKENS) as playing:
        return _throughput(playing, arguments.repetitions)


def _throughput(playing: Clients, repetitions: int) -> dict[str, float]:
    runner = playing.runner
    group_ids = [f"0/{n}" for n in range(SESSIONS // 8)]
    engine = runner._acquire_engine()
    asked: list[GenerationRequest] = []
    spent: dict[str, list[Spent]] = {"http": [], "engine": []}
    submit = engine.submit

    def noting(request: GenerationRequest) -> None:
        asked.append(request)
        submit(request)

    def over_http() -> None:
        asked.clear()
        vars(engine)["submit"] = noting
        episodes: list[Any] = []
        spent["http"].append(_spent(engine, playing, lambda: episodes.extend(runner.sample(group_ids=group_ids))))
        vars(engine)["submit"] = submit
        # What failed and was played again would be asked of the engine at another concurrency.
        assert [len(episode) for episode in episodes] == [TURNS] * SESSIONS and len(asked) == SESSIONS * TURNS

    def alone() -> None:
        spent["engine"].append(_spent(engine, playing, lambda: _directly(engine, list(asked))))

    timings = alternate({"http": over_http, "engine": alone}, repetitions)
    pairs = {clock: ratios(timings["engine"], timings["http"], clock) for clock in ("wall_s", "cpu_s")}
    http, alone_s = (Spent(*map(statistics.median, zip(*spent[name][1:], strict=True))) for name in spent)
    own = median(timings["engine"])
    return {
        "tokens of a reply": http.tokens / len(asked),
        "engine alone ÷ HTTP, wall time": statistics.median(pairs["wall_s"]),
        "engine alone ÷ HTTP, wall time, a quarter of the pairs below": float(np.quantile(pairs["wall_s"], 0.25)),
        "engine alone ÷ HTTP, CPU without the clients'": statistics.median(pairs["cpu_s"]),
        "engine alone ÷ HTTP, CPU": own / (median(timings["http"]) + http.clients_s),
        "CPU s per 1,000 tokens, engine alone": own / alone_s.tokens * 1e3,
        "CPU s per 1,000 tokens, HTTP without the clients": median(timings["http"]) / http.tokens * 1e3,
        "server CPU ms per call": http.server_s / len(asked) * 1e3,
        "steps of the engine, HTTP ÷ alone": http.steps / alone_s.steps,
        "beside the engine's CPU alone, the server's": http.server_s / own,
        "beside the engine's CPU alone, the clients'": http.clients_s / own,
        "beside the engine's CPU alone, around its steps": (http.around_s - alone_s.around_s) / own,
        "beside the engine's CPU alone, its steps take more": (http.in_steps_s - alone_s.in_steps_s) / own,
    }


class Spent(NamedTuple):
    """CPU seconds of one run, by who spent them, and what the engine did.

    Attributes:
        server_s: The server's threads.
        clients_s: The process of the clients.
        in_steps_s: The engine's steps.
        around_s: The rest of the thread that drives it.
        steps: Steps of the engine.
        tokens: What it sampled.
    """

    server_s: float
    clients_s: float
    in_steps_s: float
    around_s: float
    steps: float
    tokens: float


def _spent(engine: Any, playing: Clients, run: Callable[[], object]) -> Spent:
    in_steps: list[float] = []
    sampled: list[int] = []
    step = engine.step

    def timed_step() -> list[Generation]:
        began = time.thread_time()
        generations: list[Generation] = step()
        in_steps.append(time.thread_time() - began)
        sampled.extend(len(generation.token_ids) for generation in generations)
        return generations

    server, others, thread = _server_cpu_s(), playing.cpu_s(), time.thread_time()
    vars(engine)["step"] = timed_step
    run()
    vars(engine)["step"] = step
    around = time.thread_time() - thread - sum(in_steps)
    server, others = _server_cpu_s() - server, playing.cpu_s() - others
    return Spent(server, others, sum(in_steps), around, float(len(in_steps)), float(sum(sampled)))


def _that_never_ends(model: str, folder: str) -> str:
    """A copy of a model that takes the whole conversation and ends no reply by itself; what it says is of no account.

    One number of every embedding is so large that it passes through the layers as it is; the ids that end a reply are
    given the opposite in the output.
    """
    shutil.copytree(model, folder)
    for name, field in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        file = Path(folder) / name
        file.write_text(json.dumps(json.loads(file.read_text()) | {field: 4 * TURNS * REPLY_TOKENS}))
    weights = load_file(f"{folder}/model.safetensors")
    weights["model.embed_tokens.weight"][:, 0] = 100.0
    weights["model.norm.weight"][0] = 1.0
    weights["lm_head.weight"][:, 0] = 0.0
    for token_id in MessageRenderer(load_tokenizer(model)).stop_token_ids:
        weights["lm_head.weight"][token_id, 0] = -100.0
    save_file(weights, f"{folder}/model.safetensors", {"format": "pt"})
    return folder


def many(arguments: argparse.Namespace) -> dict[str, float]:
    """Sessions that are all open at once: how many are served to their end."""
    with clients(arguments, 2, AT_ONCE, max_tokens_per_turn=8) as playing:
        episodes = playing.runner.sample(group_ids=[f"0/{n}" for n in range(AT_ONCE // 8)])
    return {f"of {AT_ONCE} sessions at once, served": sum(len(episode) == 2 for episode in episodes)}


def _server_cpu_s() -> float:
    """CPU seconds that the threads of the server have taken."""
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("gspo-agent-server")]
    return sum(time.clock_gettime(time.pthread_getcpuclockid(thread.ident or 0)) for thread in threads)


def _directly(engine: Any, asked: list[GenerationRequest]) -> None:
    """The same prompts, each session's next one as soon as the one before is answered."""
    sessions: dict[str, list[GenerationRequest]] = {}
    for request in asked:
        sessions.setdefault(request.request_id.rpartition("/")[0], []).append(request)
    for requests in sessions.values():
        engine.submit(requests.pop(0))
    while engine.has_work():
        for generation in engine.step():
            waiting = sessions[generation.request_id.rpartition("/")[0]]
            if waiting:
                engine.submit(waiting.pop(0))


def bridge(arguments: argparse.Namespace) -> dict[str, float]:
    """CPU milliseconds to write the prompt of the last calls of a conversation, from its text and from its ids."""
    tokenizer = load_tokenizer(arguments.model)
    renderer = MessageRenderer(tokenizer)
    measured: dict[str, float] = {}
    for history in ("sampled", "as_sent"):
        session = Session(renderer, max_model_len=10**6, max_tokens=64, history=history)
        messages: list[dict[str, Any]] = [{"role": "user", "content": "3+4*2-5"}]
        taken: list[float] = []
        tokens = 0
        while tokens < CONTEXT:
            started = time.thread_time()
            prepared = session.prepare(ChatRequest(messages))
            taken.append(time.thread_time() - started)
            tokens = len(prepared.prompt)
            ids = [*tokenizer.encode("3+4*2-5+1+6*1 " * 30, add_special_tokens=False), tokenizer.eos_token_id]
            generation = Generation("", ids, np.zeros(len(ids), np.float32), "stop")
            call = session.record(prepared, prepared.numbers[0], Sampled(generation, 0))
            messages = [*messages, call.reply.message, {"role": "tool", "content": "7*2-5 " * 30}]
        measured[f"prompt at {CONTEXT} tokens, history={history!r}, ms"] = statistics.median(taken[-5:]) * 1e3
    return measured


def server(arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds until the server answers."""
    endpoint = Endpoint()
    started = time.perf_counter()
    address = urlsplit(endpoint.url())
    connection = http.client.HTTPConnection(address.netloc)
    connection.request("GET", "/v1/models")
    assert connection.getresponse().status == 401
    taken = time.perf_counter() - started
    endpoint.stop()
    return {"server start, s": taken}


def load(arguments: argparse.Namespace) -> dict[str, float]:
    """What the server withstands; see ``agent_load``."""
    return withstands(arguments.model, arguments.requests)


GOALS: dict[str, tuple[str, float]] = {
    "in process, trajectories alike": (">=", 64),
    "http, trajectories alike": (">=", 64),
    "in process, largest log-prob gap": ("<=", 1e-4),
    "http, largest log-prob gap": ("<=", 1e-4),
    "engine alone ÷ HTTP, wall time": (">=", 0.85),
    f"of {AT_ONCE} sessions at once, served": (">=", AT_ONCE),
    f"prompt at {CONTEXT} tokens, history='sampled', ms": ("<=", 1.0),
    "server CPU ms per call": ("<=", 3.0),
    "server start, s": ("<=", 1.0),
    "10 MB are refused with 413 after, ms": ("<=", 50.0),
    "p95 of a neighbour's calls beside 10 MB ÷ alone": ("<=", 1.25),
    "a body that never comes is cut off beyond its limit after, s": ("<=", 1.0),
    "of them answered with other than 200 or 400": ("<=", 0.0),
}
PARTS = {part.__name__: part for part in (server, bridge, load, many, sameness, throughput)}


def main() -> int:
    """Measures and prints; with ``--goals``, fails where one is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/seed", help="a policy that plays Calculator")
    parser.add_argument("--engine", default="transformers")
    parser.add_argument("--repetitions", type=int, default=3, help="pairs of runs that throughput is the median of")
    parser.add_argument("--requests", type=int, default=10_000, help="broken calls that the server is sent")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--goals", action="store_true", help="exit 1 where a goal is missed")
    arguments = parser.parse_args()
    missed = 0
    for part in arguments.only:
        for name, value in PARTS[part](arguments).items():
            sign, goal = GOALS.get(name, ("", 0.0))
            met = not sign or (value >= goal if sign == ">=" else value <= goal)
            missed += not met
            print(
                f"{name:<60} {value:10.4g}  {f'goal {sign} {goal:g}' if sign else ''}{'' if met else '  MISSED'}",
                flush=True,
            )
    return int(arguments.goals and bool(missed))


if __name__ == "__main__":
    sys.exit(main())
