"""Find duplicate images in a data set, in groups."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from data.index import DatasetIndex
from data.tools.decoding import DecodedImage
from data.tools.findings import Finding, finding
from data.tools.hashing import linked_groups, similar_pairs
from utils.text import some_names

SAME_THUMBNAIL = 0.97  # correlation of two thumbnails of one photograph


def check_duplicates(indices: dict[str, DatasetIndex], decoded: dict[str, list[DecodedImage]]) -> list[Finding]:
    """Groups of identical or nearly identical images across splits, or within one split.

    An identical file in two splits is reported by `check_overlap`.
    """
    places = [(split, i) for split, index in indices.items() for i in range(len(index))]
    files = [os.path.realpath(indices[split].path(i)) for split, i in places]
    seen = [decoded[split][i] for split, i in places]
    exact, near = _exact_pairs(seen, files), _near_pairs(seen, files)
    findings = []
    for members in _groups(len(seen), exact):
        findings += _one_split_twice([places[m][0] for m in members], [files[m] for m in members])
    for members in _groups(len(seen), [*exact, *near]):
        splits = dict.fromkeys(places[m][0] for m in members)
        if len(splits) < 2:
            continue
        same = any(places[one][0] != places[other][0] for one, other in exact if one in members)
        others = some_names([f"{files[m]} ({places[m][0]})" for m in members[1:]], 3)
        words = "byte for byte" if same else "nearly"
        what = f"({places[members[0]][0]}) is {words} {others}"
        todo = "keep them in one split, or divide again with dataset.py split"
        code = "same_image" if same else "near_duplicate"
        pictures = [files[m] for m in members]
        findings.append(finding(code, pictures[0], what, todo, "+".join(splits), 1, pictures))
    return findings


def _exact_pairs(seen: Sequence[DecodedImage], files: Sequence[str]) -> list[tuple[int, int]]:
    first: dict[bytes, int] = {}
    pairs = []
    for number, facts in enumerate(seen):
        if facts.digest and files[first.setdefault(facts.digest, number)] != files[number]:
            pairs.append((first[facts.digest], number))
    return pairs


def _near_pairs(seen: Sequence[DecodedImage], files: Sequence[str]) -> list[tuple[int, int]]:
    hashes = np.array([facts.hash for facts in seen], np.uint64).reshape(-1, 2)
    pairs = ((int(one), int(other)) for one, other in zip(*similar_pairs(hashes), strict=True))
    return [
        (one, other)
        for one, other in pairs
        if files[one] != files[other] and seen[one].digest != seen[other].digest and _looks_same(seen[one], seen[other])
    ]


def _looks_same(one: DecodedImage, other: DecodedImage) -> bool:
    """Whether two thumbnails match up to brightness and contrast; confirms two similar hashes."""
    first, second = (np.frombuffer(facts.thumbnail, np.uint8).astype(np.float64) for facts in (one, other))
    if min(first.std(), second.std()) < 1:
        return False
    return bool(np.corrcoef(first, second)[0, 1] > SAME_THUMBNAIL)


def _groups(count: int, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The images that are linked by pairs, directly or by others, in ascending order."""
    members: dict[int, list[int]] = {}
    for number, group in enumerate(linked_groups(count, *zip(*pairs, strict=True)) if pairs else ()):
        members.setdefault(group, []).append(number)
    return [each for each in members.values() if len(each) > 1]


def _one_split_twice(splits: Sequence[str], files: Sequence[str]) -> list[Finding]:
    findings = []
    for split in dict.fromkeys(splits):
        own = list(dict.fromkeys(file for name, file in zip(splits, files, strict=True) if name == split))
        if len(own) > 1:
            what = f"is byte for byte {some_names(own[1:], 3)}"
            findings.append(finding("duplicate_image", own[0], what, "remove all but one", split, len(own) - 1, own))
    return findings
