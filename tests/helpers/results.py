"""Scores of finished runs that can be added up by hand."""

from __future__ import annotations


def scores_of(subject: str, label: str, dsc: float, /, **others: object) -> dict[str, object]:
    """A row of test.csv whose other values follow from the DSC."""
    values = {"missed": False, "spurious": False, "dsc": dsc, "vs": dsc, "nsd": dsc, "msd": 2 - dsc, "hd95": 10 * dsc}
    values |= {"hd95_pooled": 9 * dsc, "msd_worst": 2 - dsc, "hd95_worst": 10 * dsc}
    return {"subject": subject, "class": label} | values | others
