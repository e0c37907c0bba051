"""Text environments of other packages behind the same contract, one suite per file.

None of them is imported before ``gymnasium.make``: a suite that is not installed is an ``EnvError`` that names the
extra to install. What a suite cannot do (replay bit by bit, pickle, run without Java) is in its card and its
``metadata``.
"""
