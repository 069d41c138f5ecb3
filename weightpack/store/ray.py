# SPDX-License-Identifier: Apache-2.0
"""Units of work as tasks of Ray: a worker that is free does one, and writes to the storage itself. What a lost worker had begun is done again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from weightpack.errors import MissingExtraError
from weightpack.store.pack import PackedUnit, Unit, pack_unit
from weightpack.store.storage import open_storage

if TYPE_CHECKING:
    from weightpack.options import PackOptions

LOCAL = "local"
"""Of a cluster's address: one of this machine, for this process."""

_MOST_TRIES = 10
_IN_FLIGHT = 4  # units a CPU: they wait as names of files and tensors, not as bytes


def pack_on_ray(address: str, url: str, options: PackOptions, units: Sequence[Unit], tell: Callable[[int], None]) -> Iterator[PackedUnit]:
    """Yield what comes of units, in their order.

    Parameters
    ----------
    address
        Of a cluster, or `LOCAL`. Its workers must have weightpack, and reach the storage and the files under the same names.
    url
        Of the storage.

    Raises
    ------
    MissingExtraError
        Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise MissingExtraError("work on a cluster needs Ray: `pip install weightpack[ray]`") from None
    if not ray.is_initialized():
        ray.init(address=LOCAL if address == LOCAL else address, log_to_driver=False, include_dashboard=False if address == LOCAL else None)
    task = ray.remote(num_cpus=1, max_retries=_MOST_TRIES)(_packed)
    most = _IN_FLIGHT * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting, in_flight = deque(units), deque[tuple[Unit, Any]]()
    while waiting or in_flight:
        while waiting and len(in_flight) < most:
            unit = waiting.popleft()
            in_flight.append((unit, task.remote(unit, url, options)))
        unit, result = in_flight.popleft()
        try:
            yield ray.get(result)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        tell(unit.n_bytes)


def _packed(unit: Unit, url: str, options: PackOptions) -> PackedUnit:
    return pack_unit(unit, open_storage(url), options)
