"""Agents of the user's own: what they said, as token ids that the learner can train on.

An agent is any code that asks for chat completions. Its calls during one trajectory are a ``session``: a tree, because
a call that goes on from an earlier reply has that reply's ids in its context. ``stitching`` makes an episode of it.
Nothing in this folder loads torch.
"""
