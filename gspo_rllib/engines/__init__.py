"""Generation engines: token ids in, sampled ids and their log-probabilities out.

``protocol`` says what an engine is, ``registry`` finds and shares them, ``vllm`` and ``transformers`` are the two that
ship. Importing this package loads none of them.
"""
