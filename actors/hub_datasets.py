"""Question sets of the Hugging Face hub as rows, through the `datasets` library: the hub itself, its cache, or a folder
in the hub's layout (README.md with its YAML, Parquet files)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from symoe_ray.core import InputError, ResourceError
from symoe_ray.hub_addresses import HubAddress
from symoe_ray.question_files import Row


def read_hub(source: str) -> list[Row]:
    """The rows of an hf:// address in their order; never empty.

    InputError for an address, configuration, split or column that does not exist, ResourceError where the library or
    the hub is not here, or the hub wants an account that has accepted the dataset's terms.
    """
    address = HubAddress.parse(source)
    data = _load(address, address.config)
    for name in address.columns:
        _require(address, data, name)
    elsewhere: list[object] = []
    if address.other:
        other = _load(address, address.other[0])
        _require(address, other, address.other[1])
        elsewhere = list(other[address.other[1]])
    chosen = address.chosen(len(data), {name: list(data[name]) for name in address.columns}, elsewhere)
    if not chosen:
        raise InputError(f"{source}: no rows are left")
    rows = data.select(chosen)
    if address.rename:
        _require(address, data, address.rename[0])
        rows = rows.rename_column(*address.rename)
    return [Row(f"{source}, row {number + 1}", values) for number, values in zip(chosen, rows, strict=True)]


def _load(address: HubAddress, config: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise ResourceError(f"{address.address}: needs the package datasets: pip install 'symoe-ray[hub]'") from None
    datasets.disable_progress_bars()
    if address.is_folder and not Path(address.dataset).is_dir():
        raise InputError(f"{address.address}: there is no folder {address.dataset}")
    try:
        return datasets.load_dataset(
            address.dataset, config or None, split=address.split, revision=address.revision or None
        )
    except (ValueError, FileNotFoundError) as error:  # unknown configuration or split, no data files
        if isinstance(error, datasets.exceptions.DatasetNotFoundError) and not address.is_folder:
            raise ResourceError(
                f"{address.address}: {_line(error)} (the hub must be reachable; a gated dataset asks for "
                "its terms to be accepted and for HF_TOKEN)"
            ) from error
        raise InputError(f"{address.address}: {_line(error)}") from error
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise ResourceError(f"{address.address}: cannot be loaded: {_line(error)}") from error


def _require(address: HubAddress, data: Any, column: str) -> None:
    if column not in data.column_names:
        raise InputError(f"{address.address}: no column {column!r}; there are: {', '.join(data.column_names)}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
