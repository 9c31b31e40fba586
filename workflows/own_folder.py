"""Which results folder is that of a user's images: they are known by their place, or by their content."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import data
from data.folder.containers import read_file
from errors import UserError
from utils.files import read_json
from workflows.final_head import HASH_DIGITS, earlier_clustering
from workflows.own_command import ClusterOptions
from workflows.own_experiment import COMMAND_FILE, free_name, has_begun

LOOKED_AT = 100  # images whose content is looked at


def own_folder(options: ClusterOptions, named: Path) -> Path:
    """The folder of the results: `named`, NAME-2 and so on if that has those of other images, or the one that
    these images had under another name.

    Raises UserError if the command says the name, and the folder has results of other images.
    """
    if options.named:
        if has_begun(named) and not is_of(named, options):
            free = f"--name {free_name(named)}"
            raise UserError(f"{named}: holds clusters of other images; give a name that is free: {free}")
        return named
    others = sorted(named.parent.glob("*"), key=lambda path: (len(path.name), path.name))
    records = {path: read_json(path / COMMAND_FILE) for path in others if has_begun(path)}
    unnamed = [path for path, record in records.items() if record.get("named") is False]
    numbered = [path for path in unnamed if path.name.startswith(f"{named.name}-")]
    begun = [path for path in (named, *numbered) if path in records]
    renamed = [path for path in unnamed if path not in begun and records[path].get("trained")]
    likely = [(path, False) for path in begun] + [(path, True) for path in (*begun, *renamed)]
    own = next((path for path, moved in likely if is_of(path, options, moved)), None)
    own = own or (named.with_name(free_name(named)) if named in begun else named)
    if own in renamed:
        print(f"{own}: has the results of these images, whose folder had another name")
    elif own != named:
        print(f"{named}: holds clusters of other images; these have their results in {own}")
    return own


def with_added(options: ClusterOptions, folder: Path) -> ClusterOptions:
    """The options, and what earlier commands added to the images of the folder, unless it is gone."""
    added = dict.fromkeys([*map(Path, read_json(folder / COMMAND_FILE).get("added", ())), *options.added])
    for path in added:
        if not path.exists():
            print(f"{path}: was added before and is gone; its images leave the tables until it is back")
    there = [path for path in added if path.exists() and path not in options.images]
    return replace(options, added=there)


def is_of(folder: Path, options: ClusterOptions, moved: bool = True) -> bool:
    """Whether results are of these images: of the same place or, if `moved`, of one that is gone and that had
    most of a sample of their contents.

    So are results that do not tell.
    """
    record = read_json(folder / COMMAND_FILE)
    before = record.get("contents", {}).get("pretext", {}).get("image_folder")
    before = before or record.get("arguments", {}).get("images")
    places = before if isinstance(before, list) else [before]
    if not before or {*map(str, options.images)}.intersection(places):
        return True
    if not moved or any(map(os.path.exists, places)):
        return False
    images = earlier_clustering(folder).images.values()
    known = {*record.get("trained", ())} | {kept.content for kept in images} - {""}
    if not known:
        return True
    files = data.images_of(options.images, (), options.every or 1, pages=options.pages or "first").files
    some = files[:: max(1, len(files) // LOOKED_AT)]
    contents = (hashlib.sha256(read_file(file)).hexdigest()[:HASH_DIGITS] for file in some)
    return 2 * sum(content in known for content in contents) >= len(some)
