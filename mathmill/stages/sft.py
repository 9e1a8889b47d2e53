"""Fine-tune a model on a training set: recipe and flags to one job that queues itself again until it is done."""

import json
import math
import re
import sys
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

from mathmill.errors import UserError
from mathmill.launch.cluster import Cluster
from mathmill.launch.job import Job, Step
from mathmill.launch.launching import LaunchOptions, cluster_for, launch
from mathmill.options import script
from mathmill.run import Run, check_run_name
from mathmill.stages.sft_recipe import Recipe, load_recipe
from mathmill.training.layout import data_parallel, memory_estimate, mistakes
from mathmill.training.options import TrainerOptions, TrainingSettings
from mathmill.training.shape import ModelShape, read_shape, shape_of

UTILISATION = 0.4
"""Assumed where a time is estimated before anything ran; published runs of these sizes lie between 0.3 and 0.5."""

BOUND = (
    "model", "data", "input_field", "output_field", "context_length", "packing", "too_long", "train_on_code_output", "add_bos",
    "end_text", "global_batch", "learning_rate", "schedule", "warmup_steps", "min_learning_rate", "weight_decay", "beta1",
    "beta2", "clip_grad", "hidden_dropout", "attention_dropout", "moe_aux_loss", "precision", "seed",
)  # fmt: skip
"""What makes a loss curve: it stays as it was when a run goes on."""


@dataclass(frozen=True, kw_only=True)
class SftOptions(LaunchOptions):
    """Fine-tune a model on prompts and solutions. The same command again goes on from the newest checkpoint."""

    recipe: str = "words"
    """A name in recipes/sft/, or a path to a yaml file. Flags below go before what it says."""
    data: str = "sft-data"
    """The training set: a folder that prepare_sft_data.py made, or a file of JSON lines."""
    validation_data: str | None = None
    """Rows in the same form, whose loss is measured and never trained on."""
    input_field: str = "input"
    """Name of the field with the text that a model is given."""
    output_field: str = "output"
    """Name of the field with the text that it is to write."""
    model: str | None = None
    """A name under models: in the cluster's file, or a Hugging Face folder."""
    trainer: Literal["megatron", "nemo"] = "megatron"
    """megatron: this project's own, on megatron-core. nemo: the same recipe for a NeMo 2 container."""
    num_nodes: int | None = None
    """Nodes of the job."""
    processes_per_node: int | None = None
    """One a GPU; on processors, as many as the layout needs."""
    tensor_parallel: int | None = None
    """Processes that share every layer; within a node."""
    pipeline_parallel: int | None = None
    """Stages that the layers are cut into."""
    expert_parallel: int | None = None
    """Processes that the experts of a mixture are divided among."""
    sequence_parallel: bool | None = None
    """Divide what tensor parallelism leaves whole, too."""
    recompute: Literal["none", "selective", "full"] | None = None
    """Activations that are computed again in the backward pass instead of kept."""
    precision: Literal["bf16", "fp32"] | None = None
    """bf16 keeps float32 master weights."""
    global_batch: int | None = None
    """Rows of one step; packs, with --packing."""
    micro_batch: int | None = None
    """Rows that one process works on at once."""
    epochs: float | None = None
    """Passes over the training set."""
    steps: int | None = None
    """Instead of epochs."""
    context_length: int | None = None
    """Tokens of a row, at most; longer rows are dropped, or cut by `too_long: truncate` in the recipe."""
    packing: bool | None = None
    """Several texts a row, none of which sees another."""
    train_on_code_output: bool | None = None
    """Whether the loss counts what the sandbox printed."""
    learning_rate: float | None = None
    """The highest."""
    schedule: Literal["constant", "cosine"] | None = None
    """Of the learning rate, after its warm-up."""
    warmup_steps: int | None = None
    """Steps in which the learning rate rises."""
    seed: int | None = None
    """Of the order of rows and of dropout."""
    save_every: int | None = None
    """Steps between checkpoints whose weights are kept, to be exported and averaged."""
    save_minutes: float | None = None
    """Minutes between checkpoints that only a restart needs."""
    validate_every: int | None = None
    """Steps between measurements of the loss on the validation data."""
    wandb_project: str | None = None
    """Log to Weights & Biases, too; needs the package and WANDB_API_KEY under env: in the cluster's file."""


def main() -> None:
    script(SftOptions, run_sft)


def run_sft(options: SftOptions) -> int:
    """Check, estimate, and launch what is missing of the training that the options name."""
    recipe = overridden(load_recipe(options.recipe), options)
    cluster = cluster_for(options)
    if options.num_jobs != 1:
        raise UserError("--num_jobs: a training is one job, which queues itself again; use --num_nodes")
    if options.add_jobs:
        raise UserError(
            "--add_jobs: a training is one job; stop it first, and the same command goes on: python pipeline/cancel.py"
        )
    if options.run is not None:
        check_run_name(options.run)
    run = Run(Path("runs", options.run or f"sft-{Path(options.recipe).name.removesuffix('.yaml')}").resolve())
    model = model_folder(recipe, cluster)
    shape = shape_for(recipe, model)
    per_node = processes_per_node(recipe, cluster)
    trainer = trainer_options(options, recipe, cluster, run, model)
    processes = recipe.num_nodes * per_node
    for wrong in mistakes(shape, trainer, processes, per_node):
        raise UserError(wrong)
    rows = count_rows(trainer.data)
    if rows is None and not options.dry_run:
        raise UserError(f"no training set at {options.data}; make one: python pipeline/prepare_sft_data.py")
    trainer = settled(trainer, recipe, rows)
    refuse_other_options(run, trainer, "training")
    if finished_steps(Path(trainer.folder)) >= (num_steps(trainer, rows) or 1) and not (
        options.dry_run or options.test_only
    ):
        print(f"{run.folder} is finished; next: python pipeline/export_checkpoint.py {run.name}", file=sys.stderr)
        return 0
    if options.trainer == "nemo":
        job = nemo_job(trainer, recipe, per_node, shape, rows)
    else:
        job = training_job(trainer, recipe, per_node)
    summary = summary_lines(trainer, recipe, shape, cluster, (processes, rows))

    def prepare() -> None:
        from mathmill.stages.sampling import create_run

        create_run(run)
        (run.folder / "training").mkdir(exist_ok=True)

    code = launch([job], cluster, run, options, summary, prepare=prepare)
    if code == 0 and cluster.executor == "local" and finished_steps(Path(trainer.folder)):
        print(f"next       python pipeline/export_checkpoint.py {run.name}", file=sys.stderr)
    return code


def overridden(recipe: Recipe, options: SftOptions) -> Recipe:
    """The recipe with what the flags say in place of it."""
    names = {field.name for field in fields(Recipe)} & {field.name for field in fields(SftOptions)}
    said = {name: value for name in names if (value := getattr(options, name)) is not None}
    if "steps" in said and "epochs" in said:
        raise UserError("--steps and --epochs say the same; give one")
    for given, other in (("steps", "epochs"), ("epochs", "steps")):
        if getattr(options, given) is not None:
            said[other] = None
    return replace(recipe, **said)


def model_folder(recipe: Recipe, cluster: Cluster) -> Path:
    """Where the model lies; its folder need not be visible from here if the recipe says its sizes."""
    if (entry := cluster.models.get(recipe.model)) is not None:
        return Path(entry.path).expanduser()
    folder = Path(recipe.model).expanduser()
    if not (folder / "config.json").is_file():
        known = ", ".join(sorted(cluster.models))
        raise UserError(
            f"no model '{recipe.model}' in {cluster.file}. Known: {known}; or give --model a Hugging Face folder"
        )
    return folder.resolve()


def shape_for(recipe: Recipe, model: Path) -> ModelShape:
    """Of the model's own config.json where it can be seen, else of the recipe."""
    if (model / "config.json").exists():
        return read_shape(model)
    if not recipe.model_config:
        raise UserError(
            f"{model}/config.json cannot be seen from here, and the recipe has no model_config to check with"
        )
    return shape_of(recipe.model_config, f"recipe of {recipe.model}, model_config")


def processes_per_node(recipe: Recipe, cluster: Cluster) -> int:
    """One a GPU; on processors what the layout needs, shared out to the nodes."""
    if recipe.num_nodes < 1:
        raise UserError(f"--num_nodes must be at least 1, not {recipe.num_nodes}")
    if recipe.processes_per_node is not None:
        return recipe.processes_per_node
    if recipe.device == "cuda":
        if not cluster.gpus_per_node:
            raise UserError(f"{cluster.file} has no gpus_per_node, and the recipe wants GPUs; say --processes_per_node")
        return cluster.gpus_per_node
    return math.ceil(recipe.tensor_parallel * recipe.pipeline_parallel / recipe.num_nodes)


def trainer_options(options: SftOptions, recipe: Recipe, cluster: Cluster, run: Run, model: Path) -> TrainerOptions:
    """What the trainer is told."""
    return TrainerOptions(
        folder=str(run.folder / "training"),
        model=str(model),
        data=data_files(options.data),
        validation_data=data_files(options.validation_data) if options.validation_data else (),
        input_field=options.input_field,
        output_field=options.output_field,
        peak_tflops=cluster.gpu_tflops if recipe.device == "cuda" else None,
        wandb_project=options.wandb_project,
        **{field.name: getattr(recipe, field.name) for field in fields(TrainingSettings)},
    )


def data_files(path: str) -> tuple[str, ...]:
    """The files of a training set: `sft.jsonl` of its folder, or every *.jsonl there, or the file itself."""
    place = Path(path).expanduser().resolve()
    if place.is_dir():
        if (place / "sft.jsonl").exists():
            return (str(place / "sft.jsonl"),)
        files = tuple(str(file) for file in sorted(place.glob("*.jsonl")))
        if not files:
            raise UserError(f"{path} holds no sft.jsonl, nor any other *.jsonl")
        return files
    return (str(place),)


def count_rows(files: tuple[str, ...]) -> int | None:
    """Lines of the files; None where one is not to be seen from here."""
    rows = 0
    for path in files:
        try:
            with open(path, "rb") as stream:
                while block := stream.read(1 << 24):
                    rows += block.count(b"\n")
        except OSError:
            return None
    return rows


def settled(trainer: TrainerOptions, recipe: Recipe, rows: int | None) -> TrainerOptions:
    """With the steps between kept checkpoints, where the recipe says how many an epoch has."""
    if trainer.save_every is not None or recipe.saves_per_epoch is None or rows is None or trainer.packing:
        return trainer
    return replace(trainer, save_every=math.ceil(rows / trainer.global_batch / recipe.saves_per_epoch))


def refuse_other_options(run: Run, trainer: TrainerOptions, job: str) -> None:
    """A training that has begun, by jobs of this name, goes on with the same rows and optimizer; layout and end may change."""
    earlier = sorted(
        (path for path in run.jobs.glob(f"{job}*.json") if re.fullmatch(rf"{re.escape(job)}(-[0-9]+)?", path.stem)),
        key=lambda path: path.stat().st_mtime,
    )
    if not earlier or not Path(trainer.folder, "metrics.jsonl").exists():
        return
    section = json.loads(earlier[-1].read_text()).get("trainer", {})
    now = json.loads(json.dumps(asdict(trainer)))
    for name in BOUND:
        if section.get(name) != now[name]:
            raise UserError(
                f"{job} of run {run.name} was started with {name} {section.get(name)}, not {now[name]}; "
                "use another --run, or that"
            )


def training_job(trainer: TrainerOptions, recipe: Recipe, per_node: int) -> Job:
    """One step, one task a node, torchrun on each."""
    places = {trainer.model, *trainer.data, *trainer.validation_data}
    step = Step(
        name="trainer",
        role="trainer",
        module="mathmill.training.torchrun",
        arguments=(f"--nnodes={recipe.num_nodes}", f"--nproc_per_node={per_node}", "-m", "mathmill.training"),
        main=True,
        nodes=recipe.num_nodes,
        gpus=per_node if recipe.device == "cuda" else 0,
        mounts=tuple(f"{place}:{place}:ro" for place in sorted(places)),
        secrets=trainer.wandb_project is not None,
    )
    return Job(name="training", steps=(step,), options={"trainer": asdict(trainer)})


def finished_steps(folder: Path) -> int:
    """Steps after which this training said that it is finished; 0: it did not."""
    path = folder / "finished.json"
    return json.loads(path.read_text())["steps"] if path.exists() else 0


def nemo_job(trainer: TrainerOptions, recipe: Recipe, per_node: int, shape: ModelShape, rows: int | None) -> Job:
    """The same step with NeMo's loop in it; its image is `images: nemo`, else the trainer's."""
    from mathmill.training.nemo import nemo_settings

    steps = num_steps(trainer, rows)
    if steps is None:
        raise UserError(
            "--trainer nemo wants the number of steps: make the training set visible from here, or say --steps"
        )
    settings = nemo_settings(trainer, shape.model_type, (recipe.num_nodes, per_node), steps)
    job = training_job(trainer, recipe, per_node)
    arguments = (*job.main.arguments[:-1], "mathmill.training.nemo")
    return replace(
        job,
        steps=(replace(job.main, arguments=arguments, kind="nemo"),),
        options={"trainer": asdict(trainer), "nemo": settings},
    )


def num_steps(trainer: TrainerOptions, rows: int | None) -> int | None:
    """As asked, or of the epochs where the rows can be counted."""
    if trainer.steps is not None or rows is None:
        return trainer.steps
    return math.ceil((trainer.epochs or 1) * rows / trainer.global_batch)


def summary_lines(
    trainer: TrainerOptions, recipe: Recipe, shape: ModelShape, cluster: Cluster, counts: tuple[int, int | None]
) -> list[tuple[str, str]]:
    """What a launch says of a training: model, layout, memory, steps, tokens, time."""
    processes, rows = counts
    dp = data_parallel(trainer, processes)
    unit = "GPUs" if trainer.device == "cuda" else "processes" if processes > 1 else "process"
    accumulation = trainer.global_batch // (trainer.micro_batch * dp)
    lines = [
        ("recipe", recipe.description),
        (
            "model",
            f"{recipe.model}: {shape.model_type}, {shape.num_parameters / 1e9:,.3g}B parameters, {trainer.precision}",
        ),
        (
            "layout",
            f"tensor {trainer.tensor_parallel} x pipeline {trainer.pipeline_parallel} x data {dp} = {processes} {unit}; "
            f"batch {trainer.global_batch} = {dp} x {trainer.micro_batch} x {accumulation} accumulated",
        ),
    ]
    lines.append(("memory", memory_line(trainer, shape, cluster, processes)))
    lines.append(("work", _work(trainer, shape, cluster, processes, rows)))
    return lines


def memory_line(trainer: TrainerOptions, shape: ModelShape, cluster: Cluster, processes: int) -> str:
    """The memory of a GPU or a process as estimated. UserError where the cluster's GPUs have less."""
    memory = memory_estimate(shape, trainer, processes)
    estimate = memory.text("GPU" if trainer.device == "cuda" else "process")
    if trainer.device != "cuda" or cluster.gpu_memory_gb is None:
        return f"about {estimate}"
    share = memory.total / 1e9 / cluster.gpu_memory_gb
    if share > 1:
        raise UserError(
            f"estimated {estimate}, more than the {cluster.gpu_memory_gb:g} GB of {cluster.file}; raise tensor_parallel or "
            "pipeline_parallel, or lower micro_batch"
        )
    return f"about {estimate}; {share:.0%} of {cluster.gpu_memory_gb:g} GB"


def _work(trainer: TrainerOptions, shape: ModelShape, cluster: Cluster, processes: int, rows: int | None) -> str:
    steps = num_steps(trainer, rows)
    known = "rows not to be seen from here" if rows is None else f"{rows:,} rows"
    if steps is None:
        return f"{known}, {trainer.epochs:g} epochs"
    most = steps * trainer.global_batch * trainer.context_length
    tokens = f"{most / 1e9:,.3g} billion" if most >= 1e8 else f"{most:,}"
    text = f"{known}, {steps:,} steps of {trainer.global_batch}, at most {tokens} tokens"
    if cluster.gpu_tflops and trainer.device == "cuda":
        flops = most * shape.flops_per_token(trainer.context_length) * (4 / 3 if trainer.recompute == "full" else 1)
        hours = flops / (processes * cluster.gpu_tflops * 1e12 * UTILISATION) / 3600
        text += f"; with full rows about {hours:,.0f} h at {UTILISATION:.0%} of {cluster.gpu_tflops:g} TFLOPS a GPU"
    return text
