"""Find a data set by its name, read it, and give it a split and a metric."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..errors import ConfigError, DataError
from . import ogb_raw, synthetic
from .arrays import Arrays, read_npz, tell
from .molecules import MoleculeData, read_molecules
from .node import LinkData, NodeData, read_links, read_nodes
from .splits import Rule

SYNTHETIC: dict[str, Callable[..., NodeData | MoleculeData]] = {
    "communities": synthetic.communities,
    "molecules": synthetic.molecules,
}


def load(
    name: str,
    root: str | os.PathLike[str] | None = None,
    *,
    split: str = "auto",
    split_seed: int = 0,
    train_per_class: int = 20,
    val_per_class: int = 30,
    metric: str | None = None,
    row_normalize: bool = False,
    allow_partial: bool = False,
) -> NodeData | MoleculeData | LinkData:
    """Load the data set ``name`` from the folder ``root``.

    Tries NAME.npz (nodes or links), then NAME_graphs.npz (molecules), then NAME/raw (OGB's raw folder). Without such a
    file, 'communities' and 'molecules' are generated (:mod:`gmoe_ext.data.synthetic`).

    Args:
        name: of the data set; also the stem of its file.
        root: folder; default is the environment variable GMOE_EXT_DATA, else ``data``.
        split: 'auto' takes the data file's own split, else NAME_split*.npz, else draws one: 'per_class' for nodes,
            'random' (80/10/10) for molecules. 'file' never draws; 'per_class' and 'random' always draw; any other
            RULE reads NAME_split_RULE.npz.
        split_seed: of a drawn split; also chooses one of several splits in masks [N, S].
        train_per_class, val_per_class: nodes of each class in a 'per_class' split.
        metric: 'accuracy', 'rocauc' or 'rmse'; by default inferred from the labels. Node data accept only the default.
        row_normalize: divide node features by their row's sum.
        allow_partial: accept a file that has the features of some nodes only; the others are zero.

    Returns:
        NodeData, MoleculeData or LinkData, on the CPU. What was not read, or read in a way that may surprise, is in its
        ``remarks``, and given as a DataWarning.

    Raises:
        DataError: the data set is not found, damaged, inconsistent or ambiguous; the message says what to do.
        ConfigError: an option is out of range, or does not apply to this data set.

    Examples:
        >>> data = load("communities", split_seed=1)
        >>> data.num_classes
        8
    """
    data = read(
        name,
        root,
        split=split,
        split_seed=split_seed,
        train_per_class=train_per_class,
        val_per_class=val_per_class,
        metric=metric,
        row_normalize=row_normalize,
        allow_partial=allow_partial,
    )
    tell(name, data.remarks)
    return data


def read(
    name: str,
    root: str | os.PathLike[str] | None = None,
    *,
    split: str = "auto",
    split_seed: int = 0,
    train_per_class: int = 20,
    val_per_class: int = 30,
    metric: str | None = None,
    row_normalize: bool = False,
    allow_partial: bool = False,
) -> NodeData | MoleculeData | LinkData:
    """Load as `load` without a warning, for commands: they print the data's summary, which has the remarks."""
    folder = resolve_root(root)
    if not name or {"/", "\\", "\0"} & set(name):
        raise DataError(f"data '{name}': expected a name, not a path\n  fix: pass the folder as --data.root DIR")
    rule = Rule("public", split, split_seed, train_per_class, val_per_class, (folder, name))
    given = {"split": split != "auto", "train_per_class": train_per_class != 20, "val_per_class": val_per_class != 30}
    given |= {"metric": metric is not None, "row_normalize": row_normalize, "allow_partial": allow_partial}
    try:
        data = _read(name, folder, rule, metric, allow_partial)
    except MemoryError as error:
        raise DataError(f"data '{name}' does not fit into the memory of this machine ({error})") from error
    except OSError as error:
        raise DataError(f"data '{name}' cannot be read ({error})") from error
    if data is None:
        refuse_options(name, "generated with its own split", given, ("row_normalize",) * (name == "communities"))
        data = SYNTHETIC[name](split_seed=split_seed)
    elif isinstance(data, LinkData):
        refuse_options(name, "of links", given)
    elif isinstance(data, MoleculeData):
        refuse_options(name, "of molecules", given, ("split", "metric", "train_per_class", "val_per_class"))
    elif metric not in (None, data.metric):
        raise DataError(f"data '{name}' is scored by '{data.metric}', got metric '{metric}'\n  fix: drop --data.metric")
    return data.row_normalized() if row_normalize and isinstance(data, NodeData) else data


def resolve_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Return the data folder: the argument, else the environment variable GMOE_EXT_DATA, else ``data``."""
    return Path(root if root is not None else os.environ.get("GMOE_EXT_DATA") or "data")


def files_of(name: str, folder: Path) -> list[Path]:
    """List what a data set of this name could be read from, in the order in which it is tried."""
    single, graphs, raw = folder / f"{name}.npz", folder / f"{name}_graphs.npz", folder / name / "raw"
    found = {single: single.is_file(), graphs: graphs.is_file(), raw: ogb_raw.is_raw_folder(folder / name)}
    return [path for path, there in found.items() if there]


def refuse_options(name: str, kind: str, given: Mapping[str, bool], accepted: Sequence[str] = ()) -> None:
    """Refuse options that would have no effect.

    Args:
        name: of the data set.
        kind: what its data are.
        given: whether each option was given.
        accepted: those that apply.

    Raises:
        ConfigError: naming the others that were given.
    """
    if wrong := [option for option, is_given in given.items() if is_given and option not in accepted]:
        options = ", ".join(f"--data.{option}" for option in wrong)
        raise ConfigError(f"data '{name}' is {kind}, so {', '.join(wrong)} cannot apply\n  fix: drop {options}")


def _read(
    name: str, folder: Path, rule: Rule, metric: str | None, allow_partial: bool
) -> NodeData | MoleculeData | LinkData | None:
    """Read a data set; None if there is no file and it can be generated."""
    found = files_of(name, folder)
    if not found and name in SYNTHETIC:
        return None
    if not found:
        looked = ", ".join(
            str(path) for path in (folder / f"{name}.npz", folder / f"{name}_graphs.npz", folder / name / "raw")
        )
        raise DataError(
            f"data '{name}' not found under '{folder}'.\n"
            f"  looked for: {looked}\n"
            f"  fix: pass --data.root DIR, or run `python -m gmoe_ext.data get {name} --root {folder}`"
        )
    official = rule._replace(own="official")
    path = found[0]
    if path.name == "raw":
        return ogb_raw.read(name, folder / name, official, metric)
    arrays = read_npz(path)
    if others := [other.relative_to(folder).as_posix() for other in found[1:]]:
        arrays.remark(f"not read: {', '.join(others)}")
    if path.name == f"{name}_graphs.npz":
        return read_molecules(name, arrays, official, metric)
    if "train_edge" in arrays:
        return read_links(name, arrays)
    if "x_known_nodes" in arrays and not allow_partial:
        _refuse_partial(arrays)
    arrays.use("x_known_nodes")
    return read_nodes(name, arrays, rule)


def _refuse_partial(arrays: Arrays) -> None:
    num_nodes = arrays.number("num_nodes")
    known = len(arrays.indices("x_known_nodes", num_nodes, (None,)))
    arrays.fail(
        f"has the features of {known:,} of {num_nodes:,} nodes only; the others are unknown, not zero, so "
        "results would mislead\n  fix: use the complete data set, or allow this with --data.allow_partial true"
    )
