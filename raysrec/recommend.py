"""The best items for every user, to Parquet: `python -m raysrec.recommend RUN --output FOLDER`.

Users are those of the run's data, each with all that they had (`--until test` stops where evaluation does), some of
them (`--user-ids`), or those of a file of histories (`--users`). What is recommended is what the evaluator ranks. A row
is a user: `user`, `items` (best first) and `scores`, with the ids of the source. Killed and typed again, it goes on
with the parts that are missing.
"""

import argparse
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from raysrec.cluster.bundles import need_to_rank, scale_to_rank
from raysrec.cluster.nodes import refuse_in_job_folder, wait_for_data_nodes, wait_for_nodes
from raysrec.cluster.runtime import ray_session
from raysrec.command_line import run_verb
from raysrec.config import DataConfig, ScaleConfig
from raysrec.config.run import RunConfig
from raysrec.data.prepared import PreparedData
from raysrec.data.preparing.dealing import about_interactions
from raysrec.data.preparing.fingerprint import stamp_of
from raysrec.data.sources.files import SourceError
from raysrec.data.sources.read import source_places
from raysrec.errors import ReadableError
from raysrec.model_actors import done_by_actors
from raysrec.place import Place
from raysrec.recommending.asked import DealtUsers, Some, deal_users, groups_with, read_ids, units_of
from raysrec.recommending.recommendations import PartCounts, RecommendationFolder
from raysrec.recommending.recommender import Recommender, Unit, Wanted
from raysrec.recommending.request import (
    FILE_KEYS,
    UNTIL,
    Request,
    about_file,
    refuse_impossible,
    settings_of,
    users_file,
)
from raysrec.run_directory import RunDirectory, RunError
from raysrec.tasks import run_here, run_with_ray
from raysrec.tracking.progress import stage

LARGE_INTERACTIONS = 4_000_000
"""From about here on a file of histories is read by tasks of the cluster, in place of this process."""


@dataclass(frozen=True)
class _Work:
    """What is to be done, and what was found before."""

    units: Sequence[Unit]
    """A part each."""
    whom: dict[str, Any] = field(default_factory=dict)
    """Fields of `Wanted`."""
    left_out: Some = field(default_factory=Some)
    """Users who are in no part."""
    unknown_items: Some = field(default_factory=Some)
    """Items of a file of histories that are not in the catalogue."""


def recommend(
    run: RunDirectory, config: RunConfig, request: Request, output: str, *, fresh: bool = False
) -> dict[str, Any]:
    """Recommend; what was written, as the folder's manifest says it.

    Args:
        run: A finished run.
        config: Its configuration; `evaluate` says how items are scored and whether seen ones are left out, `scale` on
            what.
        request: To whom.
        output: A folder that is not there yet, or that was begun with the same settings.
        fresh: Throw away recommendations that are there.

    Raises:
        RunError: The run is not finished, or cannot do what is asked for.
        SourceError: A file of users cannot be read.
        FolderError: The folder cannot be written to.
    """
    data = PreparedData.open(run.prepared())
    refuse_impossible(config, request, data)
    started, users = time.monotonic(), request.users
    work = _Work(()) if users else _users_of(data, request)
    folder, settings = RecommendationFolder(output), settings_of(run, config, request, data)
    folder.begin(settings, fresh=fresh)
    large = users is not None and about_interactions(users) >= LARGE_INTERACTIONS
    with ray_session(config.scale) if large else nullcontext():
        if users:
            work = _users_in(users, data, folder, config.scale if large else None)
        wanted = Wanted(
            run=str(run.path.absolute()),
            prepared=str(data.directory.absolute()),
            config_json=config.model_dump_json(),
            k=request.k,
            folder=str(folder.work),
            until=request.until,
            **work.whom,
        )
        parts = _write_parts(wanted, work.units, folder, config)
    total = sum(parts.values(), PartCounts(left_out=work.left_out))
    if not total.users:
        folder.work.delete()
        raise RunError(
            f"{run.path}: of {total.left_out.count:,} users nobody has an item before --until {request.until}"
        )
    facts = {"unknown_items": work.unknown_items.model_dump(mode="json"), "seconds": time.monotonic() - started}
    return folder.finish({**settings, "counts": total.model_dump(mode="json"), **facts}, parts)


def _users_of(data: PreparedData, request: Request) -> _Work:
    """Users of the prepared data, a part for some row groups in a row."""
    groups = data.row_groups()
    if request.user_ids is None:
        return _Work(list(enumerate(units_of(groups))))
    ids = read_ids(request.user_ids)
    places, nobody = groups_with(groups, ids)
    if not places:
        raise RunError(
            f"--user-ids {request.user_ids}: none of the {len(ids):,} ids, such as {', '.join(nobody.examples)}, is "
            "of a user of the run's data; for other users name a file of their histories with --users"
        )
    units = [[places[turn] for turn in unit] for unit in units_of([groups[place] for place in places])]
    return _Work(list(enumerate(units)), {"only": ids}, left_out=nobody)


def _users_in(users: DataConfig, data: PreparedData, folder: RecommendationFolder, scale: ScaleConfig | None) -> _Work:
    """Users of a file of histories, a part for each share of them; it is read in tasks where a scale is given."""
    dealt = folder.dealt() or _deal(users, data, folder, scale)
    whom = {"dealt": dealt}
    return _Work([(share, ()) for share in range(dealt.num_shares)], whom, unknown_items=dealt.unknown_items)


def _deal(users: DataConfig, data: PreparedData, folder: RecommendationFolder, scale: ScaleConfig | None) -> DealtUsers:
    before = stamp_of(users)
    run = partial(run_here, bar=partial(stage, say=_say))
    if scale:
        options = wait_for_data_nodes([folder.work, *source_places(users)], scale)
        run = partial(run_with_ray, bar=partial(stage, say=_say), options=options)
    try:
        with about_file():
            dealt = deal_users(users, data.item_ids(), folder.room_to_deal(), run)
        if stamp_of(users) != before:
            raise SourceError(f"--users {users.source}: changed while it was read; run this again when it is complete")
    except ReadableError:
        folder.work.delete()  # what is typed next may be meant otherwise
        raise
    folder.has_dealt(dealt)
    return dealt


def _write_parts(
    wanted: Wanted, units: Sequence[Unit], folder: RecommendationFolder, config: RunConfig
) -> dict[int, PartCounts]:
    """What each part holds, once all are written."""
    parts = folder.parts()
    missing = [unit for unit in units if unit[0] not in parts]
    if parts:
        _say(f"going on: {len(parts)} of {len(units)} parts are there")
    if not missing:
        return parts
    scale = scale_to_rank(config)
    with ray_session(scale), stage("recommending", len(missing), say=_say) as done:
        wait_for_nodes([Place(wanted.prepared), Place(wanted.run), folder.work], need_to_rank(config))
        for number, counts in done_by_actors(partial(Recommender, wanted), missing, scale):
            parts[number] = counts
            done()
    return parts


def _say(line: str) -> None:
    print(line, flush=True)


def summary(manifest: dict[str, Any]) -> str:
    """What was written, in a few lines."""
    counts, unknown = manifest["counts"], manifest["unknown_items"]
    seen = ", none that they had" if manifest["exclude_seen"] else ""
    size = sum(file["bytes"] for file in manifest["files"])
    lines = [
        f"users     {counts['users']:,}, {manifest['k']} items each{seen}",
        f"shorter   {counts['shorter']:,} users have fewer candidates" if counts["shorter"] else "",
        _left_out(
            "left out  {count:,} users who are unknown or have nothing to go by ({examples})", counts["left_out"]
        ),
        _left_out(
            f"unknown   {counts['unknown']:,} interactions with {{count:,}} items that are not in the catalogue "
            "({examples})",
            unknown,
        ),
        f"written   {manifest['folder']}, {len(manifest['files'])} files, {size / 1e6:,.1f} MB, "
        f"in {manifest['seconds']:,.0f} s",
    ]
    return "\n".join(line for line in lines if line)


def _left_out(words: str, some: dict[str, Any]) -> str:
    if not some["count"]:
        return ""
    more = ["…"] if some["count"] > len(some["examples"]) else []
    return words.format(count=some["count"], examples=", ".join([*some["examples"], *more]))


def main(arguments: argparse.Namespace) -> None:
    """Recommend as the command line says, and print what was written."""
    refuse_in_job_folder("--output", arguments.output)
    run = RunDirectory.open(arguments.run)
    file_keys = tuple(f"data.{key}" for key in FILE_KEYS) if arguments.users else ()
    of_file = [override for override in arguments.overrides if file_keys and override.startswith(file_keys)]
    if arguments.users and (arguments.until or arguments.user_ids):
        raise RunError(
            "--until and --user-ids are for users of the run's data, and --users names others; leave one out"
        )
    seen = ["evaluate.exclude_seen=true"] if arguments.exclude_seen else []
    of_run = [override for override in arguments.overrides if override not in of_file]
    config = run.config_with([*of_run, *seen], only=("evaluate.", "scale.", *file_keys))
    request = Request(
        k=arguments.k,
        until=arguments.until or "all",
        users=users_file(arguments.users, config, of_file) if arguments.users else None,
        user_ids=arguments.user_ids,
    )
    print(summary(recommend(run, config, request, arguments.output, fresh=arguments.fresh)))


def parser() -> argparse.ArgumentParser:
    """Reads the command line of this verb."""
    command_line = argparse.ArgumentParser(
        prog="python -m raysrec.recommend", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command_line.add_argument("run", help="a run directory, for example runs/ml-1m-recgrela")
    command_line.add_argument("--output", required=True, metavar="FOLDER", help="where to write, here or in a store")
    command_line.add_argument(
        "--users",
        metavar="FILE",
        help="histories of other users, an interaction a row (columns user, item, time), in any format that prepare "
        "reads; items that the run does not know are left out, and so are users who have no other",
    )
    command_line.add_argument(
        "--user-ids", metavar="FILE", help="only these users of the run's data: a text file, an id a line"
    )
    command_line.add_argument(
        "--until",
        choices=UNTIL,
        help="read all of a history (default), or what came before the item that is ranked in test or validation",
    )
    command_line.add_argument("--k", type=int, default=10, metavar="K", help="items for each user (default: 10)")
    command_line.add_argument(
        "--exclude-seen",
        action="store_true",
        help="leave out what a user had; without it as the run was evaluated (evaluate.exclude_seen)",
    )
    command_line.add_argument("--fresh", action="store_true", help="throw away the recommendations that are there")
    command_line.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for example scale.workers=4 data.columns.user=customer"
    )
    return command_line


if __name__ == "__main__":
    run_verb(main, parser())
