"""The command line. Each step is imported only when it is called: ``--help`` loads neither Spark nor torch.

Logs and progress go to standard error. Standard output carries the result: for the steps of a night one line of JSON,
which is what Airflow hands to the next task.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from cma_clip_core.errors import CoreError
from jobs.errors import JobError, TransientError
from jobs.lake import storage
from jobs.lake.layout import check_day, check_run
from jobs.runtime.failure_messages import explain
from jobs.settings import Settings
from schemas.loading import ContractError
from schemas.step_results import (
    ChampionResult,
    DatasetResult,
    ExperimentResult,
    ImportResult,
    JudgeResult,
    MaintenanceResult,
    NightResult,
    PlanResult,
    PrepareResult,
    PreprocessResult,
    PretrainResult,
    PublishResult,
    RepairResult,
    ReportResult,
    RollbackResult,
    StepResult,
    SuspectsResult,
    TagResult,
    TrainResult,
    ValidateResult,
)

if TYPE_CHECKING:
    from jobs.upkeep.repair import Repair

app = typer.Typer(
    help="""Tags a shop's catalog: every product's attributes from its picture and its text.

    A night is `validate`, `plan`, `preprocess`, `tag`, `publish`, `report`; `night` runs them all for one day.
    Before the first night: `import-catalog` brings a day's export into the lake, `prepare` makes the examples, and
    `train` makes the model; `dataset` shows what it is trained on. Every step can be run again
    at any time: what is done is skipped.

    Settings come from TAGGING_* environment variables or from the flags below, before the step's name:
    `python -m jobs --root /data/lake night --ds 2026-11-20`.
    """,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
tables_app = typer.Typer(
    help="What is published: list it, read a past day, go back to an earlier run.", no_args_is_help=False
)
models_app = typer.Typer(help="The trained models: list and show them, promote one, go back.", no_args_is_help=True)
app.add_typer(tables_app, name="tables")
app.add_typer(models_app, name="models")

Ds = Annotated[str, typer.Option("--ds", help="Day of the catalog, YYYY-MM-DD.", callback=lambda v: check_day(v))]
Newest = Annotated[
    str, typer.Option("--ds", help="Newest day whose examples are used, YYYY-MM-DD.", callback=lambda v: check_day(v))
]
Together = Annotated[
    int | None,
    typer.Option("--processes", help="Processes that train together; one a GPU where left out, on a CPU one.", min=1),
]
Towers = Annotated[
    str | None,
    typer.Option(
        help="Pretrained towers to begin with: their name, as `pretrain` prints it, or their folder, with a slash in it."
    ),
]
First = Annotated[
    str, typer.Option("--first", help="First day, YYYY-MM-DD.", callback=lambda v: check_day(v, "--first"))
]
Last = Annotated[str, typer.Option("--last", help="Last day, YYYY-MM-DD.", callback=lambda v: check_day(v, "--last"))]
Retag = Annotated[bool, typer.Option(help="Tag every product again, changed or not.")]
Model = Annotated[
    str,
    typer.Option("--model", help="Model version to tag with, as `models list` names it; the champion where left out."),
]
Attributes = Annotated[
    str,
    typer.Option(
        "--attributes",
        help="Comma-separated: of products that did not change and are tagged again, replace these attributes alone. "
        "New and changed products are always tagged whole.",
    ),
]
AllowRemovals = Annotated[
    bool, typer.Option("--allow-removals", help="Go on even if more products are removed than a night may by itself.")
]
Version = Annotated[str, typer.Argument(help="Model version, as `models list` names it.")]
Run = Annotated[str, typer.Option("--run", help="Run id, as `plan` prints it.", callback=lambda v: check_run(v))]


_root = ""  # of the command that runs; an error from S3 in the middle of it names it
_MAKE_A_LAKE = ("import-catalog", "experiment", "airflow")  # where there is nothing yet


def _settings(context: typer.Context) -> Settings:
    global _root
    settings = context.obj
    assert isinstance(settings, Settings)
    _root = str(settings.root)
    if not storage.on_disk(settings.root):
        from jobs.lake.s3_preflight import check

        check(settings.root, create=context.info_name in _MAKE_A_LAKE)
    return settings


def _print(result: StepResult) -> None:
    if os.environ.get("RANK", "0") != "0":
        return  # of processes that `torchrun` started the first one speaks
    sys.stdout.flush()
    print(result.model_dump_json(), flush=True)


@app.callback()
def _common(
    context: typer.Context,
    root: Annotated[
        str | None, typer.Option(help="The lake: a folder, or s3://bucket/prefix. [TAGGING_ROOT, default ./lake]")
    ] = None,
    picture_roots: Annotated[
        str | None, typer.Option(help="Folders pictures may be read from, comma-separated. [TAGGING_PICTURE_ROOTS]")
    ] = None,
    taxonomy: Annotated[
        str | None,
        typer.Option(
            help="Taxonomy to train with: sample, fashion, or a YAML file. Where it is given, nights refuse a champion of "
            "another. [TAGGING_TAXONOMY, sample]"
        ),
    ] = None,
    rules: Annotated[
        str | None, typer.Option(help="Data-quality rules: default, or a YAML file. [TAGGING_RULES, default]")
    ] = None,
    model_config: Annotated[
        str | None,
        typer.Option(
            "--model-config",
            help="Model to train: sample, fashion, clip-vit-b-32, or a YAML file. [TAGGING_MODEL_CONFIG_NAME, sample]",
        ),
    ] = None,
    shard_rows: Annotated[
        int | None, typer.Option(help="Most products in a shard. [TAGGING_SHARD_ROWS, 20000]")
    ] = None,
    task_rows: Annotated[
        int | None,
        typer.Option(help="Products that a task should tag; smaller shards share a task. [TAGGING_TASK_ROWS, 1]"),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Products in a forward pass of `tag`. [TAGGING_BATCH_SIZE, 256]")
    ] = None,
    max_retag_share: Annotated[
        float | None,
        typer.Option(
            help="Most of the day's products that a night tags again for a new model alone; the others wait for later "
            "nights. [TAGGING_MAX_RETAG_SHARE, 1]"
        ),
    ] = None,
    max_removed_share: Annotated[
        float | None,
        typer.Option(
            help="Most of the published products that a night removes by itself; one that would remove more stops. "
            "[TAGGING_MAX_REMOVED_SHARE, 0.2]"
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, or cuda (fails without a GPU). [TAGGING_DEVICE]")
    ] = None,
    spark_master: Annotated[str | None, typer.Option(help="Where Spark runs. [TAGGING_SPARK_MASTER, local[*]]")] = None,
    spark_memory: Annotated[str | None, typer.Option(help="Heap of Spark's driver. [TAGGING_SPARK_MEMORY, 2g]")] = None,
    spark_options: Annotated[
        str | None, typer.Option(help="More of Spark's options, a JSON object. [TAGGING_SPARK_OPTIONS]")
    ] = None,
    progress: Annotated[bool | None, typer.Option(help="Show progress bars. [TAGGING_PROGRESS]")] = None,
) -> None:
    from jobs.runtime.step_metrics import set_up_logging

    set_up_logging()
    flags: dict[str, Any] = {
        "root": root, "picture_roots": picture_roots, "taxonomy": taxonomy, "rules": rules, "model_config_name": model_config,
        "shard_rows": shard_rows, "task_rows": task_rows, "batch_size": batch_size, "max_retag_share": max_retag_share,
        "max_removed_share": max_removed_share, "device": device, "spark_master": spark_master,
        "spark_memory": spark_memory, "spark_options": spark_options, "progress": progress,
    }  # fmt: skip
    context.obj = Settings(**{name: value for name, value in flags.items() if value is not None})


@app.command("sample-catalog")
def sample_catalog(
    folder: Annotated[Path, typer.Argument(help="Folder to write; its second day goes to <folder>-day2.")],
    products: Annotated[int, typer.Option(help="Clean products to draw.")] = 3000,
    seed: Annotated[int, typer.Option(help="The same seed draws the same catalog.")] = 7,
) -> None:
    """Draw a catalog of garment-like products, dirty records among them, and what it looks like a day later."""
    from jobs.demo.sample_catalog import generate, next_day

    generate(folder, products=products, seed=seed)
    next_day(folder, folder.with_name(f"{folder.name}-day2"), mapping="sample", seed=seed)


@app.command("import-catalog")
def import_catalog(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="The shop's export: records and pictures.")],
    ds: Ds,
    mapping: Annotated[str, typer.Option(help="Column mapping: sample, fashion-products, or a YAML file.")] = "sample",
) -> None:
    """Bring a shop's export into the lake as the raw catalog of one day."""
    from jobs.importing.import_catalog import import_catalog as step

    manifest = step(_settings(context), folder, ds, mapping)
    _print(ImportResult(ds=ds, rows=manifest.rows, files=len(manifest.files)))


@app.command()
def validate(context: typer.Context, ds: Ds) -> None:
    """Check a day's records: quarantine the bad ones with their reasons, stop where the batch is not to be trusted."""
    from jobs.validation.validate import validate as step

    settings = _settings(context)
    result = step(settings, ds)
    _print(
        ValidateResult(
            ds=ds,
            valid=result.valid,
            quarantined=result.quarantined,
            unparsable=result.unparsable,
            report=str(settings.root / result.data_docs_path),
        )
    )


@app.command()
def plan(
    context: typer.Context,
    ds: Ds,
    retag: Retag = False,
    model: Model = "",
    attributes: Attributes = "",
    allow_removals: AllowRemovals = False,
    most_tasks: Annotated[
        int | None,
        typer.Option(help="Most groups that the shards are printed in, one for each task that tags.", min=1),
    ] = None,
) -> None:
    """Freeze what this run must do: new and changed products, removed ones, those a new model must tag again."""
    from jobs.nightly.plan import plan as step
    from jobs.nightly.shards import groups

    settings = _settings(context)
    result = step(
        settings,
        ds,
        retag=retag,
        model=model or None,
        attributes=_list(attributes),
        allow_removals=allow_removals,
    )
    _print(
        PlanResult(
            ds=ds,
            run_id=result.run_id,
            shards=tuple(groups(result.shards, most_tasks, settings.task_rows)),
            to_preprocess=result.to_preprocess,
        )
    )


@app.command()
def preprocess(context: typer.Context, run: Run) -> None:
    """Make the model inputs of new and changed products: clean text, decoded and resized picture, known labels."""
    from jobs.nightly.preprocess import preprocess as step

    _print(PreprocessResult(run_id=run, examples=step(_settings(context), run)))


@app.command()
def prepare(context: typer.Context, ds: Ds) -> None:
    """Make the examples of an imported day without a night, to train on: validate, plan and preprocess in one go."""
    from jobs.runs.prepare_examples import prepare as step

    _print(PrepareResult(ds=ds, examples=step(_settings(context), ds)))


@app.command()
def dataset(
    context: typer.Context,
    ds: Newest,
) -> None:
    """Make the labelled set to train and judge models on: one table, and a page that shows what is in it.

    It takes the examples that `prepare` and the nights made up to that day, of the picture size of
    `--model-config` and of `--taxonomy`. Labels count only where their attribute applies to the product's article type;
    each says which text fields name it (none: *silent*). Products are split into train, validation and test by family:
    near-same descriptions of a brand, and near-same pictures, are never on two sides.

    The same inputs are the same set: run again, it is found and its folder is printed at once. `train` makes or finds
    the set of its day by itself.
    """
    from jobs.training.dataset import dataset as step

    found = step(_settings(context), ds)
    _print(
        DatasetResult(
            set_id=found.manifest.set_id,
            products=found.manifest.products,
            families=found.manifest.families,
            table=str(found.table),
            page=str(found.page),
        )
    )


@app.command()
def pretrain(context: typer.Context, ds: Newest, processes: Together = None) -> None:
    """Train the two towers on the catalog's own pairs of picture and text, where no pretrained weights can be had."""
    from jobs.runtime.data_parallel import run_together
    from jobs.training.pretrain import pretrain as step

    settings = _settings(context)
    _print(PretrainResult(towers=run_together(processes, settings.device, step, settings, ds)))


@app.command()
def experiment(
    context: typer.Context,
    ds: Newest,
    products: Annotated[
        int | None, typer.Option(help="Take about so many products; all where left out.", min=1)
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of every method's training; the configuration's where left out.", min=1)
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            help="Methods to compare, comma-separated; all where left out: raw-clip, fine-tuned-clip, text-tower, picture-tower, "
            "late-concatenation, sa-without-ma, ma-without-sa, cma-clip, tf-idf."
        ),
    ] = "",
    text: Annotated[str, typer.Option(help="Text fields to read, such as `title`; the configuration's.")] = "",
    attributes: Annotated[
        str,
        typer.Option(
            help="Attributes to compare, comma-separated; all where left out. Trainings are of all, so others cost no new ones; "
            "the results are written anew."
        ),
    ] = "",
    catalog: Annotated[
        Path | None,
        typer.Option(
            help="Shop's export, a folder: imported as that day, in place of what the day had, and its examples made."
        ),
    ] = None,
    mapping: Annotated[str, typer.Option(help="Column mapping of that export.")] = "sample",
    processes: Annotated[
        int | None,
        typer.Option(
            help="Methods trained side by side; where left out one a core, on a GPU at most 6 of a small model, and one of a "
            "large one.",
            min=1,
        ),
    ] = None,
    towers: Towers = None,
    keep: Annotated[
        str,
        typer.Option(
            help="Trained methods to keep as model versions, comma-separated; they are not promoted. One that was run without "
            "is trained again."
        ),
    ] = "",
    seeds: Annotated[
        int,
        typer.Option(
            help="Trainings of each method, with seeds one above the other: their mean, least and greatest. The results are of so "
            "many; more that were trained before stay for when they are asked for again.",
            min=1,
        ),
    ] = 1,
) -> None:
    """Compare CMA-CLIP with raw and fine-tuned CLIP, its own ablations, and TF-IDF: recall at 90 % precision.

    All methods begin with the same towers (pretrained here, unless `--towers` or the configuration names some), see the same split, and
    are judged by the same evaluator: where they are trained with titles alone too (`title_only`), on both kinds of text.
    Killed, it goes on where it was. Results: a table, plots, JSON.
    """
    from jobs.importing.prepare_export import prepare_export
    from jobs.training.experiment.run_experiment import experiment as step

    if catalog is not None:
        prepare_export(_settings(context), catalog, ds, mapping)
    folder = step(
        _settings(context),
        ds,
        products=products,
        epochs=epochs,
        methods=_list(methods),
        text=_list(text),
        attributes=_list(attributes),
        processes=processes,
        towers=towers,
        keep=_list(keep),
        seeds=seeds,
    )
    _print(ExperimentResult(results=str(folder / "results.md")))


def _list(names: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(",") if name.strip())


@app.command()
def train(
    context: typer.Context,
    ds: Newest,
    promote: Annotated[
        bool,
        typer.Option(
            help="Make the new model the champion, unless the one there is better; the next night then tags every product again."
        ),
    ] = True,
    towers: Towers = None,
    pretrain: Annotated[
        bool,
        typer.Option(
            "--pretrain",
            envvar="TAGGING_PRETRAIN",
            help="Begin with towers pretrained on the same labelled set: those that are there of this configuration, else "
            "pretrain them first. Not with --towers, nor where the configuration names pretrained weights.",
        ),
    ] = False,
    processes: Together = None,
) -> None:
    """Train CMA-CLIP on the day's labelled set, choose thresholds, and write a model version.

    With a configuration without pretrained weights, such as `fashion`, `--pretrain` lets both towers first learn from the
    catalog's own pairs of picture and text, as `experiment` does. Killed, it goes on where it was when it is started again.
    """
    from jobs.runtime.data_parallel import run_together
    from jobs.training.train import train as step

    settings = _settings(context)
    version = run_together(processes, settings.device, step, settings, ds, promote, towers, pretrain)
    _print(TrainResult(model_version=version))


@app.command()
def suspects(
    context: typer.Context,
    ds: Newest,
    folds: Annotated[int, typer.Option(help="Models to train, each on all but one share of the families.", min=2)] = 3,
    towers: Towers = None,
) -> None:
    """Find the catalog's labels that are probably wrong, by models that never saw them: a table, and a page of pictures."""
    from jobs.training.suspects import suspects as step

    _print(SuspectsResult(suspects=str(step(_settings(context), ds, folds=folds, towers=towers) / "index.html")))


@app.command()
def tag(
    context: typer.Context,
    run: Run,
    shard: Annotated[
        str | None, typer.Option(help="Shards to tag: 7, 0-2, or 0-2,7; all of the plan's where left out.")
    ] = None,
) -> None:
    """Predict the attributes of a run's products, shard by shard; a finished shard is skipped."""
    from jobs.nightly.tag import tag as step

    _print(TagResult(run_id=run, tagged=step(_settings(context), run, shard)))


@app.command()
def publish(context: typer.Context, run: Run) -> None:
    """Merge a run's predictions into the tables and the history: write, audit, then one atomic swap; then the ledger.

    Where another run was published since the plan was made, the day is planned anew on it, and what is known is not tagged
    again; the result names the run that was published.
    """
    from jobs.lake.layout import Lake
    from jobs.runs.republish import publish_in_turn as step

    settings = _settings(context)
    ledger = step(settings, run)
    manifest = Lake(settings.root).run(ledger.run_id) / "manifest.json"
    _print(
        PublishResult(
            run_id=ledger.run_id,
            products=ledger.published_products,
            rows=ledger.published_rows,
            manifest=str(manifest) if storage.exists(manifest) else None,  # none: nothing changed
            ledger=ledger,
        )
    )


@app.command()
def report(context: typer.Context, run: Run) -> None:
    """Write the run's report: one HTML page with the ledger, the quarantine, each attribute, and the time of each step."""
    from jobs.report.nightly_report import report as step

    _print(ReportResult(run_id=run, report=str(step(_settings(context), run))))


@app.command()
def night(
    context: typer.Context,
    ds: Ds,
    retag: Retag = False,
    model: Model = "",
    attributes: Attributes = "",
    allow_removals: AllowRemovals = False,
) -> None:
    """Run a whole night without Airflow: validate, plan, preprocess, tag, publish, report."""
    from jobs.runs.whole_night import night as step

    ledger, page = step(
        _settings(context),
        ds,
        retag=retag,
        model=model or None,
        attributes=_list(attributes),
        allow_removals=allow_removals,
    )
    _print(
        NightResult(
            run_id=ledger.run_id,
            products=ledger.published_products,
            rows=ledger.published_rows,
            report=str(page),
        )
    )


@app.command()
def estimate(
    context: typer.Context,
    first: First,
    last: Last,
    retag: Retag = False,
    model: Model = "",
    attributes: Attributes = "",
    allow_removals: AllowRemovals = False,
) -> None:
    """Say what a backfill of these days would do and cost: counts by reason, and time at the rates of the last runs.

    Each day with an export is validated and planned; nothing is tagged or published. The first day's plan is the one that
    a backfill finds again. Each later day is compared with what is published now, not with what the days before it would
    have changed by then.
    """
    from jobs.runs.backfill_estimate import estimate as step

    found = step(
        _settings(context),
        first,
        last,
        retag=retag,
        model=model or None,
        attributes=_list(attributes),
        allow_removals=allow_removals,
    )
    _print(found.result())


@app.command()
def demo(
    context: typer.Context,
    folder: Annotated[Path, typer.Option(help="Where the demo's lake and Airflow live.")] = Path(".run"),
    catalog: Annotated[Path | None, typer.Option(help="A real catalog instead of the drawn one.")] = None,
    mapping: Annotated[str, typer.Option(help="Column mapping of that catalog.")] = "fashion-products",
) -> None:
    """What `make run` does: a catalog, a model, two nights through Airflow, and how to query the result."""
    from jobs.demo.two_nights import demo as step

    step(_settings(context), folder, catalog, mapping)


@app.command()
def airflow(
    context: typer.Context,
    folder: Annotated[Path, typer.Option(help="Airflow's home: its database, logs and password.")] = Path(".airflow"),
    port: Annotated[int, typer.Option(help="Port of the UI, on this machine alone.", min=1)] = 8080,
    only_set_up: Annotated[
        bool,
        typer.Option("--only-set-up", help="Make pools and connections in the Airflow of the environment, and end."),
    ] = False,
    gpu_slots: Annotated[
        int | None,
        typer.Option(
            help="Slots of the pool `gpu`: tasks that tag or train at once. Default: this machine's GPUs.", min=1
        ),
    ] = None,
    keep_loaded: Annotated[
        bool,
        typer.Option(help="Keep torch, Spark's client and the like loaded (0.7 GB), so that steps start at once."),
    ] = True,
) -> None:
    """Start Airflow with the DAGs on this machine and print its address and login; Ctrl-C ends all of it."""
    from jobs.orchestration import local_airflow

    if only_set_up:
        local_airflow.set_up(_settings(context), dict(os.environ), gpu_slots)
    else:
        local_airflow.start(_settings(context), folder, port, gpu_slots, keep_loaded=keep_loaded)


@tables_app.callback(invoke_without_command=True)
def tables(
    context: typer.Context,
    as_of: Annotated[str | None, typer.Option(help="Write the tables as they were on this day, YYYY-MM-DD.")] = None,
    out: Annotated[Path | None, typer.Option(help="With --as-of: the Parquet file to write.")] = None,
) -> None:
    """List what is published, and print the line that reads it with DuckDB, pandas, Polars and Spark."""
    if context.invoked_subcommand is None:
        from jobs.upkeep.published_tables import show, write_as_of

        if as_of is None:
            show(_settings(context))
        else:
            write_as_of(_settings(context), check_day(as_of), out)


@tables_app.command()
def rollback(context: typer.Context, run: Run) -> None:
    """Point the tables at an earlier published run."""
    from jobs.upkeep.published_tables import rollback as step

    _print(RollbackResult(live=step(_settings(context), run)))


@tables_app.command("repair")
def tables_repair(
    context: typer.Context,
    write: Annotated[bool, typer.Option("--write", help="Write it. Without it nothing is changed.")] = False,
) -> None:
    """Make the history's index, and the file for readers, again where they are damaged or missing.

    From the runs' manifests and ledgers, and from the indexes that they left. Without `--write` it only says what would be
    written: the live run, the days with their runs, and what it is not sure of. What was there is kept, under another name.
    """
    from jobs.upkeep.repair import repair_tables

    _show(repair_tables(_settings(context), write=write), write)


def _show(found: Repair, write: bool) -> None:
    print("\n".join(found.lines), file=sys.stderr)
    files = tuple(str(path) for path in found.writes)
    _print(RepairResult(written=write and bool(files), sure=found.sure, files=files))


@app.command()
def maintenance(
    context: typer.Context,
    days: Annotated[
        int,
        typer.Option(
            help="Least age of what goes: of a run, in days since it was last worked on and last live.", min=0
        ),
    ] = 30,
    keep: Annotated[
        int, typer.Option(help="Newest published runs that stay beside the live one, whatever their age.", min=0)
    ] = 7,
    delete: Annotated[bool, typer.Option("--delete", help="Remove it. Without it nothing is changed.")] = False,
) -> None:
    """Take out of the lake what it no longer needs. Without `--delete` it only says what that is, and how large.

    What goes: old runs, each with its tables, predictions and plan; changes that no day's history names any more;
    examples that no plan, no product of a run that stays, and no labelled set of a model names; records of days that
    were validated anew; what killed steps and trainings left (after a day; trainings after `--days`).

    What stays: the live run and the `--keep` newest others, with all that `tables rollback` to them needs; every day of
    the history, to be read by `tables --as-of`; runs that are at work, or were within a day. Whoever reads the tables of a
    run that is live no more has `--days` for it; `--days 0` is for a lake that nobody reads meanwhile.

    A run that has expired cannot be gone back to. Its day can be run again, as another run; examples that are gone are
    made again. Products that left the catalog leave the labelled sets of later models with their examples.

    Not its business: the raw catalog and its pictures, the newest valid records of each day, models, towers, labelled
    sets, experiments, suspects, reports. Nothing behind a link is removed. Killed, it goes on when it is started again.
    """
    from jobs.upkeep.remove_expired import maintenance as step

    sweep = step(_settings(context), days=days, keep=keep, delete=delete)
    print("\n".join(sweep.lines()), file=sys.stderr)
    _print(MaintenanceResult(deleted=delete, expired=sweep.expired, bytes=sweep.bytes))


@models_app.command("list")
def models_list(context: typer.Context) -> None:
    """List the model versions, the champion marked, and what is broken; weights are not read."""
    from jobs.models.list_models import list_models

    list_models(_settings(context))


@models_app.command("show")
def models_show(context: typer.Context, version: Version) -> None:
    """Print a version's model card: data, numbers, limits, and what it must not be used for."""
    from jobs.models.list_models import show_model

    show_model(_settings(context), version)


@models_app.command("judge")
def models_judge(context: typer.Context, version: Version) -> None:
    """Judge a model version against the champion, as `promote` does, and change nothing.

    The last line is JSON: `accepted`, the `verdict` in words, and the same as a `page` in Markdown. Where there is no champion
    yet, the version is accepted.
    """
    from jobs.models.promotion import judge as step

    verdict = step(_settings(context), version)
    alone = f"there is no other champion to compare {version} with"
    words, page = ("\n".join(verdict.lines()), verdict.page()) if verdict else (alone, alone)
    print(words)
    accepted = verdict is None or verdict.accepted
    _print(JudgeResult(model_version=version, accepted=accepted, verdict=words, page=page))


@models_app.command("promote")
def models_promote(
    context: typer.Context,
    version: Version,
    force: Annotated[bool, typer.Option("--force", help="Without a comparison with the champion.")] = False,
) -> None:
    """Make a model version the champion, unless it is worse than the one there is: the next night re-tags every product,
    or `--max-retag-share` of them.

    Both are judged on the same test products: the challenger must be no worse in mean recall at 90 % precision, nor at
    any attribute, beyond noise (paired bootstrap). Where there are too few of these products, nothing is promoted.
    """
    from jobs.models.promotion import promote as step

    verdict = step(_settings(context), version, force=force)
    print("\n".join(verdict.lines()) if verdict else f"{version} is the champion")
    _print(ChampionResult(champion=version))


@models_app.command("rollback")
def models_rollback(context: typer.Context) -> None:
    """Make the champion before this one the champion again."""
    from jobs.models.champion_pointer import rollback as step

    _print(ChampionResult(champion=step(_settings(context))))


@models_app.command("repair")
def models_repair(
    context: typer.Context,
    write: Annotated[bool, typer.Option("--write", help="Write it. Without it nothing is changed.")] = False,
) -> None:
    """Name the champion again where the file that does is damaged or missing: the version that tagged the live tables.

    A challenger that was accepted against it since is named too: whether that one was promoted cannot be told.
    """
    from jobs.upkeep.repair import repair_champion

    _show(repair_champion(_settings(context), write=write), write)


def main() -> None:
    """Run the command line; print an error that the user can act on without a traceback."""
    try:
        app(standalone_mode=True)
    except (JobError, CoreError, ContractError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, TransientError) else 2)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()]
        print("\n".join(["error: wrong settings:", *lines]), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if (told := _of_s3(error) or explain(error)) is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        sys.exit(1 if isinstance(told, TransientError) else 2)


def _of_s3(error: Exception) -> JobError | None:
    """Return what an error means that came from S3 in the middle of a step; None where it did not."""
    if "botocore" not in sys.modules:
        return None
    from jobs.lake import s3_preflight

    found = s3_preflight.s3_cause(error)
    return None if found is None else s3_preflight.explain(found, _root)
