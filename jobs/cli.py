"""The command line. Each step is imported only when it runs, so ``--help`` loads neither Spark nor torch.

Logs and progress go to standard error. The result goes to standard output. A step of a night prints one line of JSON,
which Airflow hands to the next task.
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
from schemas.mapping import shipped_mappings
from schemas.step_results import (
    ChampionResult,
    DatasetResult,
    ExperimentResult,
    ExportResult,
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
    help="""Tag a shop's catalog: predict every product's attributes from its picture and its text.

    A night consists of `validate`, `plan`, `preprocess`, `tag`, `publish` and `report`. `night` runs all of them for one
    day.

    For a new shop, `draft` writes a mapping and a taxonomy from its export. Before the first night, `import-catalog` brings
    a day's export into the lake, `prepare` makes the examples, and `train` makes the model. `dataset` shows the training
    data. You can run any step again at any time: finished work is skipped.

    Settings come from TAGGING_* environment variables, or from the flags below. The flags go before the step's name:
    `python -m jobs --root /data/lake night --ds 2026-11-20`.
    """,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
tables_app = typer.Typer(
    help="The published tables: list them, read a past day, return to an earlier run, repair the index.",
    no_args_is_help=False,
)
models_app = typer.Typer(
    help="The trained models: list, show, judge and promote them, or return to the previous champion.",
    no_args_is_help=True,
)
app.add_typer(tables_app, name="tables")
app.add_typer(models_app, name="models")

Ds = Annotated[str, typer.Option("--ds", help="Day of the catalog, YYYY-MM-DD.", callback=lambda v: check_day(v))]
Newest = Annotated[
    str, typer.Option("--ds", help="Use examples up to this day, YYYY-MM-DD.", callback=lambda v: check_day(v))
]
Together = Annotated[
    int | None,
    typer.Option(
        "--processes",
        help="Number of processes that train one model together. Default: one per GPU, or one on a CPU.",
        min=1,
    ),
]
Towers = Annotated[
    str | None,
    typer.Option(
        help="Pretrained towers to start from: a name that `pretrain` printed, or a folder (a path with a slash in it)."
    ),
]
First = Annotated[
    str, typer.Option("--first", help="First day, YYYY-MM-DD.", callback=lambda v: check_day(v, "--first"))
]
Last = Annotated[str, typer.Option("--last", help="Last day, YYYY-MM-DD.", callback=lambda v: check_day(v, "--last"))]
Retag = Annotated[bool, typer.Option(help="Tag every product again, even if it did not change.")]
Model = Annotated[
    str,
    typer.Option("--model", help="Model version to tag with, as `models list` prints it. Default: the champion."),
]
Attributes = Annotated[
    str,
    typer.Option(
        "--attributes",
        help="Attributes to replace when unchanged products are tagged again, comma-separated. Default: all. New and "
        "changed products always get every attribute.",
    ),
]
AllowRemovals = Annotated[
    bool,
    typer.Option(
        "--allow-removals", help="Continue even if the night removes more products than --max-removed-share allows."
    ),
]
Version = Annotated[str, typer.Argument(help="Model version, as `models list` prints it.")]
Run = Annotated[str, typer.Option("--run", help="Run id, as `plan` prints it.", callback=lambda v: check_run(v))]


_root = ""  # lake of the running command; errors from S3 name it
_MAPPING = f"Column mapping of the export: {', '.join(shipped_mappings())}, or a YAML file."
_MAKE_A_LAKE = ("import-catalog", "experiment", "airflow")  # commands that may create the lake


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
        return  # `torchrun` started several processes: only the first one prints
    sys.stdout.flush()
    print(result.model_dump_json(), flush=True)


@app.callback()
def _common(
    context: typer.Context,
    root: Annotated[
        str | None, typer.Option(help="The lake: a folder, or s3://bucket/prefix. [TAGGING_ROOT, default ./lake]")
    ] = None,
    picture_roots: Annotated[
        str | None,
        typer.Option(help="Folders that pictures may be read from, comma-separated. [TAGGING_PICTURE_ROOTS]"),
    ] = None,
    taxonomy: Annotated[
        str | None,
        typer.Option(
            help="Taxonomy to train with: sample, fashion, or a YAML file. If you set it, nights refuse a champion with a different "
            "taxonomy. [TAGGING_TAXONOMY, sample]"
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
    candidates: Annotated[
        str | None,
        typer.Option(
            help="Methods that `train` tries, comma-separated: bag-of-words, picture-features, cma-clip. The best one answers "
            "each attribute. Without cma-clip, training takes seconds to minutes. [TAGGING_CANDIDATES, all three]"
        ),
    ] = None,
    shard_rows: Annotated[
        int | None, typer.Option(help="Largest number of products in a shard. [TAGGING_SHARD_ROWS, 20000]")
    ] = None,
    task_rows: Annotated[
        int | None,
        typer.Option(
            help="Products that a task should tag; shards smaller than this share a task. [TAGGING_TASK_ROWS, 1]"
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Products per forward pass in `tag`. [TAGGING_BATCH_SIZE, 256]")
    ] = None,
    max_retag_share: Annotated[
        float | None,
        typer.Option(
            help="Largest share of the day's products that a night tags again only because the model is new. The others "
            "wait for later nights. [TAGGING_MAX_RETAG_SHARE, 1]"
        ),
    ] = None,
    max_removed_share: Annotated[
        float | None,
        typer.Option(
            help="Largest share of the published products that a night may remove. A night stops if it would remove "
            "more than this. "
            "[TAGGING_MAX_REMOVED_SHARE, 0.2]"
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, or cuda (fails without a GPU). [TAGGING_DEVICE, auto]")
    ] = None,
    spark_master: Annotated[
        str | None, typer.Option(help="Address of Spark's master. [TAGGING_SPARK_MASTER, local[*]]")
    ] = None,
    spark_memory: Annotated[
        str | None, typer.Option(help="Heap size of Spark's driver. [TAGGING_SPARK_MEMORY, 2g]")
    ] = None,
    spark_options: Annotated[
        str | None, typer.Option(help="Further Spark options, as a JSON object. [TAGGING_SPARK_OPTIONS]")
    ] = None,
    progress: Annotated[bool | None, typer.Option(help="Show progress bars. [TAGGING_PROGRESS]")] = None,
) -> None:
    from jobs.runtime.step_metrics import set_up_logging

    set_up_logging()
    flags: dict[str, Any] = {
        "root": root, "picture_roots": picture_roots, "taxonomy": taxonomy, "rules": rules, "model_config_name": model_config,
        "candidates": candidates,
        "shard_rows": shard_rows, "task_rows": task_rows, "batch_size": batch_size, "max_retag_share": max_retag_share,
        "max_removed_share": max_removed_share, "device": device, "spark_master": spark_master,
        "spark_memory": spark_memory, "spark_options": spark_options, "progress": progress,
    }  # fmt: skip
    context.obj = Settings(**{name: value for name, value in flags.items() if value is not None})


@app.command("sample-catalog")
def sample_catalog(
    folder: Annotated[Path, typer.Argument(help="Folder to write the catalog to. The second day goes to FOLDER-day2.")],
    products: Annotated[int, typer.Option(help="Number of clean products; dirty records come on top.")] = 3000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same catalog.")] = 7,
) -> None:
    """Generate a catalog of garments with some dirty records, and the same catalog a day later."""
    from jobs.demo.sample_catalog import generate, next_day

    generate(folder, products=products, seed=seed)
    next_day(folder, folder.with_name(f"{folder.name}-day2"), mapping="sample", seed=seed)


@app.command("draft")
def draft_files(
    folder: Annotated[Path, typer.Argument(help="Folder with the shop's export: records and pictures.")],
    out: Annotated[
        Path, typer.Option(help="Folder for mapping.yaml, taxonomy.yaml and draft.html. Default: the current folder.")
    ] = Path(),
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite files of an earlier draft, with your edits.")
    ] = False,
    rows: Annotated[int, typer.Option(help="Most rows to look at.", min=1)] = 50_000,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing: say what the edited files change, compared with the draft.")
    ] = False,
    mapping: Annotated[
        str, typer.Option(help="With --check: the edited mapping. Default: mapping.yaml in --out.")
    ] = "",
    taxonomy: Annotated[
        str, typer.Option(help="With --check: the edited taxonomy. Default: taxonomy.yaml in --out.")
    ] = "",
) -> None:
    """Draft a mapping and a taxonomy from a shop's export, and a page that shows what was found and why.

    Read the page, edit the two files, and run the command again with --check. Neither needs Spark or a lake.
    """
    if check:
        from jobs.drafting.draft_check import check_draft

        lines, faulty = check_draft(
            folder, mapping or str(out / "mapping.yaml"), taxonomy or str(out / "taxonomy.yaml"), rows
        )
        print("\n".join(lines))
        if faulty:
            raise typer.Exit(1)
        return
    from jobs.drafting.draft import draft, next_steps, write_draft
    from jobs.drafting.draft_page import render_draft

    made = draft(folder, rows)
    paths = write_draft(made, render_draft(made), out, force)
    print("\n".join(next_steps(made, folder, paths)))


@app.command("import-catalog")
def import_catalog(
    context: typer.Context,
    folder: Annotated[
        str, typer.Argument(help="Folder with the shop's export, records and pictures; or s3://bucket/prefix.")
    ],
    ds: Ds,
    mapping: Annotated[str, typer.Option(help=_MAPPING)] = "sample",
) -> None:
    """Import a shop's export into the lake as the raw catalog of one day."""
    from jobs.importing.import_catalog import import_catalog as step
    from jobs.lake.storage import as_path

    manifest = step(_settings(context), as_path(folder), ds, mapping)
    _print(ImportResult(ds=ds, rows=manifest.rows, files=len(manifest.files)))


@app.command()
def validate(context: typer.Context, ds: Ds) -> None:
    """Check a day's records: quarantine bad ones with their reasons, and stop if the batch as a whole breaks a critical rule."""
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
        typer.Option(help="Print the shards in at most this many groups: one group per task that tags.", min=1),
    ] = None,
) -> None:
    """Compare the day with the published tables and freeze the run's work: new, changed, removed and re-tagged products."""
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
    """Make the model's inputs for new and changed products: clean text, decoded and resized picture, known labels."""
    from jobs.nightly.preprocess import preprocess as step

    _print(PreprocessResult(run_id=run, examples=step(_settings(context), run)))


@app.command()
def prepare(context: typer.Context, ds: Ds) -> None:
    """Make training examples from an imported day without running a night: validate, plan and preprocess in one step."""
    from jobs.runs.prepare_examples import prepare as step

    _print(PrepareResult(ds=ds, examples=step(_settings(context), ds)))


@app.command()
def dataset(
    context: typer.Context,
    ds: Newest,
) -> None:
    """Make the labelled set that models are trained and judged on: one table, and a page that shows its content.

    The set takes the examples that `prepare` and the nights made up to that day. Only examples that match
    the picture size of `--model-config` and the taxonomy of `--taxonomy` count.

    A label counts only if its attribute applies to the product's article type. For each label the set records which text
    fields name it; a label that none of them names is *silent*.

    Families are split into train, validation and test. Products of one brand with near-duplicate descriptions, and products
    with near-duplicate pictures, are in one family, so they never end up on two sides.

    The same inputs give the same set: a second call prints the existing one. `train` makes or finds the set of its day by
    itself.
    """
    from jobs.training.dataset import dataset as step

    labelled_set = step(_settings(context), ds)
    _print(
        DatasetResult(
            set_id=labelled_set.manifest.set_id,
            products=labelled_set.manifest.products,
            families=labelled_set.manifest.families,
            table=str(labelled_set.table),
            page=str(labelled_set.page),
        )
    )


@app.command()
def pretrain(context: typer.Context, ds: Newest, processes: Together = None) -> None:
    """Train both towers on the catalog's own image-text pairs, for a configuration without pretrained weights."""
    from jobs.runtime.data_parallel import run_together
    from jobs.training.pretrain import pretrain as step

    settings = _settings(context)
    _print(PretrainResult(towers=run_together(processes, settings.device, step, settings, ds)))


@app.command()
def experiment(
    context: typer.Context,
    ds: Newest,
    products: Annotated[
        int | None, typer.Option(help="Number of products to use, approximately. Default: all.", min=1)
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Training epochs of every method. Default: as in the configuration.", min=1)
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            help="Methods to compare, comma-separated. Default: all of raw-clip, fine-tuned-clip, text-tower, picture-tower, "
            "late-concatenation, sa-without-ma, ma-without-sa, cma-clip, tf-idf."
        ),
    ] = "",
    text: Annotated[
        str,
        typer.Option(help="Text fields to read, comma-separated, such as `title`. Default: as in the configuration."),
    ] = "",
    attributes: Annotated[
        str,
        typer.Option(
            help="Attributes to compare, comma-separated. Default: all. Models are always trained on all attributes, so a "
            "different choice only rewrites the results."
        ),
    ] = "",
    catalog: Annotated[
        Path | None,
        typer.Option(
            help="Folder with a shop's export. It is imported as that day, replacing the day's catalog, and its examples are "
            "made."
        ),
    ] = None,
    mapping: Annotated[str, typer.Option(help=_MAPPING)] = "sample",
    processes: Annotated[
        int | None,
        typer.Option(
            help="Methods to train in parallel. Default: one per core; on a GPU up to 6 if the model is small, and 1 if it is "
            "large.",
            min=1,
        ),
    ] = None,
    towers: Towers = None,
    keep: Annotated[
        str,
        typer.Option(
            help="Trained methods to keep as model versions, comma-separated; none is promoted. A method that an earlier call "
            "trained without --keep is trained again."
        ),
    ] = "",
    seeds: Annotated[
        int,
        typer.Option(
            help="Trainings of each method, with consecutive seeds. The results give their mean, minimum and maximum. Trainings "
            "with further seeds from earlier calls are kept, but not used.",
            min=1,
        ),
    ] = 1,
) -> None:
    """Compare CMA-CLIP with raw and fine-tuned CLIP, its own ablations and TF-IDF by recall at 90 % precision.

    All methods start from the same towers, use the same split, and are judged by the same evaluator. The towers are
    pretrained here, unless `--towers` or the configuration names some. If training also uses titles alone (`title_only`),
    methods are judged on full text and on titles.

    The results are a table, plots and JSON. If the command is killed, start it again: it continues where it stopped.
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
            help="Make the new model the champion if it is no worse than the present one. The next night then tags every "
            "product again, or --max-retag-share of them."
        ),
    ] = True,
    towers: Towers = None,
    pretrain: Annotated[
        bool,
        typer.Option(
            "--pretrain",
            envvar="TAGGING_PRETRAIN",
            help="Start from towers pretrained on the same labelled set. Existing towers of this configuration are reused; "
            "if there are none, they are pretrained first. Cannot be combined with --towers, or with a configuration that names "
            "pretrained weights.",
        ),
    ] = False,
    processes: Together = None,
) -> None:
    """Train the candidate methods on the day's labelled set, choose thresholds, and write a model version.

    The candidates are a bag of words, pretrained picture features, and CMA-CLIP. Each attribute is answered by the best of
    them, or by several together. The cheap ones are trained first, and the log says what they reach. `--candidates`, before
    the word `train`, chooses some.

    A configuration such as `fashion` names no pretrained weights. With `--pretrain`, both towers are first trained on the
    catalog's own image-text pairs, as in `experiment`.

    If the training is killed, start it again: it continues from its last checkpoint.
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
    folds: Annotated[
        int,
        typer.Option(
            help="Number of models to train. Each leaves out one part of the families and judges that part.", min=2
        ),
    ] = 3,
    towers: Towers = None,
) -> None:
    """Find labels of the catalog that are probably wrong, with models that never saw them; write a table and a page."""
    from jobs.training.suspects import suspects as step

    _print(SuspectsResult(suspects=str(step(_settings(context), ds, folds=folds, towers=towers) / "index.html")))


@app.command()
def tag(
    context: typer.Context,
    run: Run,
    shard: Annotated[
        str | None, typer.Option(help="Shards to tag: 7, 0-2, or 0-2,7. Default: all shards of the plan.")
    ] = None,
) -> None:
    """Predict the attributes of a run's products, shard by shard. A finished shard is skipped."""
    from jobs.nightly.tag import tag as step

    _print(TagResult(run_id=run, tagged=step(_settings(context), run, shard)))


@app.command()
def publish(context: typer.Context, run: Run) -> None:
    """Merge a run's predictions into the tables and the history: write, audit, swap atomically, then write the ledger.

    If another run was published after this run was planned, the day is planned again on top of that run. Existing predictions
    are reused. The result names the run that was published.
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
            manifest=str(manifest) if storage.exists(manifest) else None,  # None: nothing changed
            ledger=ledger,
        )
    )


@app.command()
def report(context: typer.Context, run: Run) -> None:
    """Write the run's report: one HTML page with the ledger, the quarantine, each attribute and the time of each step."""
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
    """Estimate what a backfill of these days would do and cost: products by reason, and time at the rates of recent runs.

    Each day with an export is validated and planned. Nothing is tagged or published. A backfill reuses the first
    day's plan. Each later day is compared with the tables of today, so its estimate leaves out what earlier days would change.
    """
    from jobs.runs.backfill_estimate import estimate as step

    cost = step(
        _settings(context),
        first,
        last,
        retag=retag,
        model=model or None,
        attributes=_list(attributes),
        allow_removals=allow_removals,
    )
    _print(cost.result())


@app.command()
def demo(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Option(help="Folder for the demo's lake and Airflow. It replaces that of an earlier demo.")
    ] = Path(".run"),
    catalog: Annotated[
        Path | None, typer.Option(help="Folder of a real export, instead of the generated catalog.")
    ] = None,
    mapping: Annotated[str, typer.Option(help=_MAPPING)] = "fashion-products",
) -> None:
    """Run the demo, as `make run` does: take a catalog, train a model, run two nights through Airflow, query the result."""
    from jobs.demo.two_nights import demo as step

    step(_settings(context), folder, catalog, mapping)


@app.command()
def airflow(
    context: typer.Context,
    folder: Annotated[Path, typer.Option(help="Airflow's home: its database, logs and password file.")] = Path(
        ".airflow"
    ),
    port: Annotated[int, typer.Option(help="Port of the UI, open to this machine only.", min=1)] = 8080,
    only_set_up: Annotated[
        bool,
        typer.Option(
            "--only-set-up",
            help="Only set up the Airflow of the environment (AIRFLOW_*): database, pool, connection, roles.",
        ),
    ] = False,
    gpu_slots: Annotated[
        int | None,
        typer.Option(
            help="Slots of the pool `gpu`: how many tasks tag or train at once. Default: one per GPU; without a GPU, "
            "up to 2.",
            min=1,
        ),
    ] = None,
    keep_loaded: Annotated[
        bool,
        typer.Option(
            help="Keep torch, Spark's client and other libraries loaded (0.7 GB), so that steps start at once."
        ),
    ] = True,
) -> None:
    """Start Airflow with the DAGs on this machine and print its address and login. Ctrl-C stops it."""
    from jobs.orchestration import local_airflow

    if only_set_up:
        local_airflow.set_up(_settings(context), dict(os.environ), gpu_slots)
    else:
        local_airflow.start(_settings(context), folder, port, gpu_slots, keep_loaded=keep_loaded)


@app.command()
def export(
    context: typer.Context,
    system: Annotated[str, typer.Option("--as", help="shopify, woocommerce, magento, google-merchant, or csv.")],
    since: Annotated[
        str,
        typer.Option(
            help="First day whose changes are exported, YYYY-MM-DD.", callback=lambda v: check_day(v, "--since")
        ),
    ],
    out: Annotated[Path, typer.Option(help="File to write. It appears whole or not at all.")],
    mapping: Annotated[
        str, typer.Option(help="Column mapping that the shop is imported with. Default: the shipped one of the system.")
    ] = "",
    catalog: Annotated[
        str,
        typer.Option(help="Folder with the shop's newest export, or s3://bucket/prefix; only csv does not need it."),
    ] = "",
    corrections: Annotated[
        bool,
        typer.Option(
            "--corrections",
            help="Also write the model's accepted values that conflict with the shop's own. This replaces what the shop said.",
        ),
    ] = False,
) -> None:
    """Write the values that the pipeline filled in back into a file for the shop's importer.

    The file has the shop's own columns, words and separators: the mapping is read backwards. It has one row for each product
    with new values, and only the columns that some product needs. In these columns every row repeats what the shop
    says, because an importer may erase cells that the file leaves empty.

    Each new cell is read again by the mapping. It is written only if nothing but the new value differs. The table at the end
    counts each attribute's changes: exported to which column, or left out for which reason.

    **Into the shop:**

    - shopify: Products > Import, with "Overwrite products with matching handles"
    - woocommerce: Products > Import, with "Update existing products"
    - magento: System > Import, Products, with "Add/Update"
    - google-merchant: a supplemental data source of the primary feed

    Try a few products first, and keep the shop's export as a backup.

    Example: `python -m jobs export --as shopify --catalog export/ --since 2026-11-20 --out tags.csv`
    """
    from jobs.exporting.export_changes import export_changes
    from jobs.exporting.export_table import lines
    from jobs.lake.storage import as_path

    settings, folder = _settings(context), as_path(catalog) if catalog else None
    exported = export_changes(settings, system, since, out, mapping=mapping, catalog=folder, corrections=corrections)
    print("\n".join(lines(exported)), file=sys.stderr)
    counts = exported.counts.values()
    _print(
        ExportResult(
            file=str(out),
            rows=exported.rows,
            exported=sum(count.exported for count in counts),
            left_out=sum(count.changes - count.exported for count in counts),
        )
    )


@tables_app.callback(invoke_without_command=True)
def tables(
    context: typer.Context,
    as_of: Annotated[str | None, typer.Option(help="Write the tables as they were on this day, YYYY-MM-DD.")] = None,
    out: Annotated[Path | None, typer.Option(help="With --as-of: the Parquet file to write.")] = None,
) -> None:
    """List the published tables, and print how to read them with DuckDB, pandas, Polars and Spark."""
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
    write: Annotated[bool, typer.Option("--write", help="Write the files. Without this flag nothing changes.")] = False,
) -> None:
    """Rebuild the history index and the list of live files for readers, if either is damaged or missing.

    They are rebuilt from the runs' manifests and ledgers, and from the index that each run left behind. Without `--write`
    the command only reports what it would write: the live run, the run of each day, and everything it is unsure of. The old
    files are kept under another name.
    """
    from jobs.upkeep.repair import repair_tables

    _show(repair_tables(_settings(context), write=write), write)


def _show(repair: Repair, write: bool) -> None:
    print("\n".join(repair.lines), file=sys.stderr)
    files = tuple(str(path) for path in repair.writes)
    _print(RepairResult(written=write and bool(files), sure=repair.sure, files=files))


@app.command()
def maintenance(
    context: typer.Context,
    days: Annotated[
        int,
        typer.Option(
            help="Minimum age in days of what is removed. A run's age counts from when it was last worked on or live.",
            min=0,
        ),
    ] = 30,
    keep: Annotated[
        int,
        typer.Option(help="Number of newest published runs to keep besides the live one, whatever their age.", min=0),
    ] = 7,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove the files. Without this flag nothing changes.")
    ] = False,
) -> None:
    """Remove what the lake no longer needs. Without `--delete`, only list it with its size.

    **Removed:**

    - old runs, each with its tables, predictions and plan
    - changes that no day's history references
    - examples that no plan, no remaining run's product and no model's labelled set references
    - records of days that were validated again
    - leftovers of killed steps (after a day) and of killed trainings (after `--days`)

    **Kept:**

    - the live run and the `--keep` newest other runs, with everything that `tables rollback` to them needs
    - every day of the history, which `tables --as-of` reads
    - runs that a step is working on, or worked on within the last day

    **Never touched:** the raw catalog and its pictures, the newest valid records of each day, models, towers, labelled
    sets, experiments, suspects, reports, and everything behind a link.

    A reader of an older run's tables has `--days` to finish. Use `--days 0` only while nobody reads the lake.

    You cannot return to an expired run, but you can run its day again as a new run; missing examples are made again.
    Removed examples of products that left the catalog are missing from later labelled sets.

    If the command is killed, start it again: it continues where it stopped.
    """
    from jobs.upkeep.remove_expired import maintenance as step

    sweep = step(_settings(context), days=days, keep=keep, delete=delete)
    print("\n".join(sweep.lines()), file=sys.stderr)
    _print(MaintenanceResult(deleted=delete, expired=sweep.expired, bytes=sweep.bytes))


@models_app.command("list")
def models_list(context: typer.Context) -> None:
    """List the model versions, mark the champion, and report broken versions. Weights are not read."""
    from jobs.models.list_models import list_models

    list_models(_settings(context))


@models_app.command("show")
def models_show(context: typer.Context, version: Version) -> None:
    """Print a version's model card: its data, its numbers, its limits, and uses to avoid."""
    from jobs.models.list_models import show_model

    show_model(_settings(context), version)


@models_app.command("judge")
def models_judge(context: typer.Context, version: Version) -> None:
    """Judge a model version against the champion, as `promote` does, without promoting it.

    The last line is JSON: `accepted`, the `verdict` as text, and the verdict as a Markdown `page`. If there is no champion
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
    force: Annotated[bool, typer.Option("--force", help="Promote without comparing with the champion.")] = False,
) -> None:
    """Make a model version the champion if it is no worse than the present one.

    The next night then tags every product again, or `--max-retag-share` of them.

    Both models are judged on the same test products. The challenger must not be worse than the champion, beyond noise
    (paired bootstrap), in mean recall at 90 % precision or at any single attribute. If there are too few of these products,
    nothing is promoted.
    """
    from jobs.models.promotion import promote as step

    verdict = step(_settings(context), version, force=force)
    print("\n".join(verdict.lines()) if verdict else f"{version} is the champion")
    _print(ChampionResult(champion=version))


@models_app.command("rollback")
def models_rollback(context: typer.Context) -> None:
    """Make the previous champion the champion again."""
    from jobs.models.champion_pointer import rollback as step

    _print(ChampionResult(champion=step(_settings(context))))


@models_app.command("repair")
def models_repair(
    context: typer.Context,
    write: Annotated[bool, typer.Option("--write", help="Write the files. Without this flag nothing changes.")] = False,
) -> None:
    """Rebuild the champion file if it is damaged or missing: the version that tagged the live tables becomes the champion.

    The command also names challengers that were accepted against that version since. It cannot know whether one of them
    was promoted.
    """
    from jobs.upkeep.repair import repair_champion

    _show(repair_champion(_settings(context), write=write), write)


def main() -> None:
    """Run the command line. Print errors that the user can act on without a traceback."""
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
        if (job_error := _explain_s3_error(error) or explain(error)) is None:
            raise
        print(f"error: {job_error}", file=sys.stderr)
        sys.exit(1 if isinstance(job_error, TransientError) else 2)


def _explain_s3_error(error: Exception) -> JobError | None:
    """Translate an error that S3 caused in the middle of a step; return None for any other error."""
    if "botocore" not in sys.modules:
        return None
    from jobs.lake import s3_preflight

    cause = s3_preflight.s3_cause(error)
    return None if cause is None else s3_preflight.explain(cause, _root)
