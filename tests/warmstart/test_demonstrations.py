"""Demonstrations: which tokens are learned, and how often an expert errs."""

from __future__ import annotations

from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.model_folder import load_tokenizer
from gspo_rllib.warmstart.demonstrations import demonstrate, render
from tests.warmstart.small_policy import make_calculator


def test_a_demonstration_marks_exactly_the_replies(tiny_dense) -> None:
    env = make_calculator()
    renderer = ChatRenderer(load_tokenizer(tiny_dense), env.unwrapped.chat)
    transcript = demonstrate(env, seed=3)
    assert len(transcript.replies) == 3
    assert transcript.roles == ("user", "tool", "tool")
    shown = render(transcript, renderer)
    marked = shown.token_ids[shown.is_reply].tolist()
    assert marked == [i for reply in transcript.replies for i in renderer.reply(reply)]
    whole = [{"role": "system", "content": env.unwrapped.chat.system_prompt}]
    for observation, role, reply in zip(transcript.observations, transcript.roles, transcript.replies, strict=True):
        whole += [{"role": role, "content": observation}, {"role": "assistant", "content": reply}]
    rendered = load_tokenizer(tiny_dense).apply_chat_template(whole, tokenize=True, return_dict=False)
    assert shown.token_ids.tolist() == rendered[: len(shown.token_ids)]


def test_mistakes_are_replies_that_are_right_elsewhere_at_the_rate_asked_for() -> None:
    env = make_calculator()
    assert demonstrate(env, 3, mistake_rate=0.0, wrong_replies=["answer 1"]) == demonstrate(env, 3)
    always = demonstrate(env, 3, mistake_rate=1.0, wrong_replies=["1+1"])
    assert set(always.replies) == {"1+1"}
    assert always.mistakes == len(always.replies) == env.unwrapped.max_turns
    sometimes = [demonstrate(env, seed, mistake_rate=0.2, wrong_replies=["answer 100"]) for seed in range(400)]
    replies = [reply for transcript in sometimes for reply in transcript.replies]
    assert sum(transcript.mistakes for transcript in sometimes) == replies.count("answer 100")
    assert 0.16 < replies.count("answer 100") / len(replies) < 0.24
    solved = [transcript for transcript in sometimes if transcript.replies[-1] != "answer 100"]
    assert len(solved) > 350, "after a mistake that costs only a turn the expert still solves the task"
