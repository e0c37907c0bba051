"""What Ray keeps of the functions and classes that it was given."""

from __future__ import annotations


def exported() -> set[bytes]:
    """Keys of Ray's table of functions and actors' classes: an entry for each that it was ever given, and none goes."""
    from ray._private.ray_constants import KV_NAMESPACE_FUNCTION_TABLE
    from ray.experimental.internal_kv import _internal_kv_list

    return set(_internal_kv_list(b"", namespace=KV_NAMESPACE_FUNCTION_TABLE))
