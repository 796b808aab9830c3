"""One numbering of the classes of all data sets of a run."""

from collections import Counter

import numpy as np

from ddpm_hf.data.tables import Table
from ddpm_hf.errors import UserError


class Classes:
    """The classes of several sets, one set's after the other's.

    A name that two sets have becomes "set: name". A set without labels is one class, called like the set, where
    others have labels or there are several sets. A single set without labels has no classes.

    Args:
        tables: the training split of every set.
        titles: what every set is called.

    Raises:
        UserError: for labels that its ``label_names`` do not cover.
    """

    def __init__(self, tables: list[Table], titles: list[str]):
        self.tables = tables
        self.labelled = len(tables) > 1 or tables[0].labels is not None
        names = [_own_names(table, title) for table, title in zip(tables, titles)]
        self.counts = [0]
        if self.labelled:
            self.counts = [max(1, table.num_classes if own is None else len(own)) for table, own in zip(tables, names)]
        self.first = np.concatenate(([0], np.cumsum(self.counts)))[:-1].tolist()
        self.names = names[0] if len(tables) == 1 else _told_apart(names, titles, self.counts)

    def __len__(self) -> int:
        return sum(self.counts)

    def labels(self, source: int, table: Table, rows: np.ndarray) -> np.ndarray | None:
        """Labels int64 of ``rows`` of a table of set number ``source``: its training split, or one to validate on.

        Raises:
            UserError: for a label that the training split does not have.
        """
        trained = self.tables[source]
        if not self.labelled:
            return None
        if trained.labels is None:
            return np.full(len(rows), self.first[source], np.int64)
        if table.labels is None:
            raise UserError(f"split {table.split!r} of {table.where} has no labels, split {trained.split!r} has.")
        labels = table.labels[rows]
        if table is not trained:
            labels = self._renumbered(labels, table, trained, self.counts[source])
        return self.first[source] + labels

    def _renumbered(self, labels, table: Table, trained: Table, count: int) -> np.ndarray:
        """``labels`` of ``table`` in the numbering of ``trained``, by the names where there are names."""
        if table.names is None or trained.names is None:
            known = {label: label for label in range(count)}
        else:
            ids = {name: label for label, name in enumerate(trained.names[:count])}
            known = {label: ids[name] for label, name in enumerate(table.names) if name in ids}
        used = np.unique(labels)
        for label in used.tolist():
            if label not in known:
                name = table.names[label] if table.names and 0 <= label < len(table.names) else label
                raise UserError(
                    f"split {table.split!r} of {table.where} has the label {name!r}, which its split "
                    f"{trained.split!r} does not have; choose another validation_split."
                )
        return np.array([known[label] for label in used.tolist()], np.int64)[np.searchsorted(used, labels)]


def _own_names(table: Table, title: str) -> list[str] | None:
    """The class names of one set, or None where its labels have none."""
    if table.labels is None:
        return None
    names = table.source.label_names or table.names
    if names is not None and table.labels.max() >= len(names):
        raise UserError(
            f"{len(names)} label_names do not cover labels {table.labels.min()} to {table.labels.max()} of "
            f"{table.where}."
        )
    return None if names is None else list(names)


def _told_apart(names: list[list[str] | None], titles: list[str], counts: list[int]) -> list[str]:
    """The names of all sets in one list, a name that occurs twice with its set's title."""
    filled = [
        ([title] if count == 1 else [str(label) for label in range(count)]) if own is None else own
        for own, title, count in zip(names, titles, counts)
    ]
    often = Counter(name for own in filled for name in own)
    return [f"{title}: {name}" if often[name] > 1 else name for own, title in zip(filled, titles) for name in own]


def distinct_titles(titles: list[str]) -> list[str]:
    """``titles``, a repeated one with its number: "flowers", "flowers 2"."""
    seen, result = Counter(), []
    for title in titles:
        seen[title] += 1
        result.append(title if seen[title] == 1 else f"{title} {seen[title]}")
    return result
