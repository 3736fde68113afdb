import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from seal_ray.errors import ConfigError
from seal_ray.recipe import dump_job, load_job

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "jobs/runs").rglob("*.yaml"))


def job(
    data="data: {path: data/x}",
    method="method: seal",
    budget="budget: {epochs: 16, generation_length: 8}",
    recipe="",
    rest="",
):
    """A usable job file, with lines put in the place of usable ones or after them."""
    lines = ["name: trial", "recipe:", *(f"  {line}" for line in (data, method, budget, recipe)), rest]
    return "\n".join(line for line in lines if line.strip()) + "\n"


def file(folder, text):
    path = folder / "trial.yaml"
    path.write_text(text)
    return path


def complaints(path, overrides=()):
    with pytest.raises(ConfigError) as caught:
        load_job(path, overrides)
    return str(caught.value).splitlines()


def test_the_job_the_cases_below_spoil_is_usable(tmp_path):
    assert load_job(file(tmp_path, job())).name == "trial"


# Each text marks the line that the complaint must name with `#!`.
BAD = {
    # Fields that are not there.
    "unknown section": (job(rest="placemnt: {} #!"), "placemnt", "did you mean 'placement'?"),
    "unknown field": (
        job(recipe="optimizer:\n    momentum: 0.9\n    learning_rate: 0.1 #!"),
        "recipe.optimizer.learning_rate",
        "unknown field; did you mean 'lr'? (fields: name, lr, weight_decay,",
    ),
    "wd": (job(recipe="optimizer: {wd: 0.1} #!"), "recipe.optimizer.wd", "did you mean 'weight_decay'?"),
    "bs": (job(recipe="bs: 32 #!"), "recipe.bs", "did you mean 'batch_size'?"),
    "world size": (
        job(rest="placement:\n  world_size: 2 #!"),
        "placement.world_size",
        "did you mean 'workers'?",
    ),
    "num workers in the recipe": (
        job(recipe="num_workers: 2 #!"),
        "recipe.num_workers",
        "did you mean placement.workers?",
    ),
    "epochs too high up": (job(recipe="epochs: 9 #!"), "recipe.epochs", "did you mean recipe.budget.epochs?"),
    "section too high up": (
        job(rest="optimizer: {lr: 1.0} #!"),
        "optimizer",
        "did you mean recipe.optimizer?",
    ),
    "an analysis that there is not": (job(rest="analyses: [dpth] #!"), "analyses.0", "did you mean"),
    "a moment that no generation has": (
        job(rest="analyses: {what: depth, moments: [last, g001-first]} #!"),
        "analyses.moments.1",
        "'g001-first' is not one of init, forgotten, ascended, relearned, averaged, last",
    ),
    "settings of an analysis that is not made": (
        job(rest="analyses:\n  what: depth\n  settings:\n    curvature: {steps: 9} #!"),
        "analyses.settings.curvature",
        "is not among `what`",
    ),
    "a setting that an analysis does not have": (
        job(rest="analyses:\n  what: depth\n  settings:\n    depth:\n      neighbours: 9 #!"),
        "analyses.settings.depth.neighbours",
        "depth has no such setting (settings: k,",
    ),
    "a setting out of range": (
        job(rest="analyses:\n  what: depth\n  settings:\n    depth:\n      k: 0 #!"),
        "analyses.settings.depth.k",
        "greater than or equal to 1",
    ),
    "misspelt and too high up": (
        job(recipe="label_smothing: 0.1 #!"),
        "recipe.label_smothing",
        "did you mean recipe.loss.label_smoothing?",
    ),
    "spelling of case and dash": (
        job(rest="placement: {Eval-Every: 2} #!"),
        "placement.Eval-Every",
        "did you mean 'eval_every'?",
    ),
    "lost colon": (
        job(recipe="optimizer {lr: 0.1} #!"),
        "recipe.'optimizer {lr'",
        "did you mean 'optimizer'?",
    ),
    "misspelt augmentation": (
        job(recipe="augment:\n    then:\n      - cutout\n      - mixupp #!"),
        "recipe.augment.then.1",
        "must be 'cutout', 'mixup', 'cutmix', 'colour_jitter' or 'randaugment', not 'mixupp'; did you mean",
    ),
    "misspelt field of an augmentation": (
        job(recipe="augment:\n    then:\n      - cutout\n      - name: mixup\n        alfa: 0.1 #!"),
        "recipe.augment.then.1.alfa",
        "unknown field; did you mean 'alpha'? (fields: name, alpha)",
    ),
    "field of another augmentation": (
        job(recipe="augment: {then: [{name: mixup, length: 3}]} #!"),
        "recipe.augment.then.0.length",
        "is a field of cutout, not of mixup; remove it",
    ),
    "field of an augmentation out of range": (
        job(recipe="augment: {then: [{name: randaugment, magnitude: 31}]} #!"),
        "recipe.augment.then.0.magnitude",
        "must be at most 30, not 31",
    ),
    "one augmentation for a list": (
        job(recipe="augment: {then: cutout} #!"),
        "recipe.augment.then",
        "must be a list, not 'cutout'",
    ),
    "nothing to mix": (
        job(recipe="batch_size: 4\n  shards: 4\n  augment:\n    then: [cutout, cutmix] #!"),
        "recipe.augment.then.1",
        "cutmix mixes images of a shard, which has one; use fewer shards",
    ),
    "misspelt loss": (
        job(recipe="loss: {name: bce} #!"),
        "recipe.loss.name",
        "must be 'ce' or 'cs_kd', not 'bce'",
    ),
    "field of another optimizer": (
        job(recipe="optimizer: {betas: [0.9, 0.99]} #!"),
        "recipe.optimizer.betas",
        "is a field of adamw, adam, adamax, nadam or radam, not of sgd; remove it (fields: name, lr,",
    ),
    "misspelt field of an optimizer": (
        job(recipe="optimizer:\n    name: AdamW\n    beta: 0.9 #!"),
        "recipe.optimizer.beta",
        "unknown field; did you mean 'betas'? (fields: name, lr, weight_decay, schedule, warmup_share, "
        "clip_norm, betas, eps, amsgrad)",
    ),
    "field of an optimizer of the wrong kind": (
        job(recipe="optimizer:\n    name: rmsprop\n    centered: 1 #!"),
        "recipe.optimizer.centered",
        "must be true or false, not 1",
    ),
    "half a field of an optimizer": (
        job(recipe="optimizer: {name: adamw, betas: [0.9]} #!"),
        "recipe.optimizer.betas.1",
        "missing; add it",
    ),
    "field of an optimizer out of torch's range": (
        job(recipe="optimizer: {name: adamw, betas: [1.5, 0.9]} #!"),
        "recipe.optimizer",
        "adamw: Invalid beta parameter at index 0: 1.5",
    ),
    "Nesterov without momentum": (
        job(recipe="optimizer: {momentum: 0.0, nesterov: true} #!"),
        "recipe.optimizer",
        "sgd: Nesterov momentum requires a momentum",
    ),
    "misspelt optimizer": (
        job(recipe="optimizer: {name: adamww} #!"),
        "recipe.optimizer.name",
        "did you mean 'adamw'?",
    ),
    "optimizer with a closure": (
        job(recipe="optimizer: {name: LBFGS, max_iter: 4} #!"),
        "recipe.optimizer.name",
        "LBFGS: LBFGS computes the loss again inside a step",
    ),
    "optimizer of sparse gradients": (
        job(recipe="optimizer: SparseAdam #!"),
        "recipe.optimizer.name",
        "SparseAdam needs sparse gradients",
    ),
    "null optimizer": (job(recipe="optimizer: #!"), "recipe.optimizer", "must be a mapping of name, lr,"),
    "half precision": (
        job(recipe="precision: fp16 #!"),
        "recipe.precision",
        "fp16 needs a loss scale, a state that changes whenever a gradient overflows; use bf16",
    ),
    "nothing near": (job(rest="placement: {zzz: 2} #!"), "placement.zzz", "unknown field (fields: workers,"),
    "field of another method": (
        job(method="method:\n    name: seal\n    rho: 0.1 #!"),
        "recipe.method.rho",
        "is a field of sam, asam or gsam, not of seal; remove it (fields: name, split_at,",
    ),
    "misspelt field of a method": (
        job(method="method:\n    name: seal\n    ascent_shar: 0.1 #!"),
        "recipe.method.ascent_shar",
        "did you mean 'ascent_share'?",
    ),
    "misspelt field of a rise": (
        job(method="method:\n    name: seal\n    ascent_rate:\n      rise: 0.5\n      strat: 1 #!"),
        "recipe.method.ascent_rate.strat",
        "did you mean 'start'? (fields: rise, start, factor, cap)",
    ),
    "misspelt direction": (
        job(method="method: {name: seal, direction: randon} #!"),
        "recipe.method.direction",
        "must be 'gradient' or 'random' or a mapping of noise, not 'randon'; did you mean 'random'?",
    ),
    "noise of no size": (
        job(method="method:\n    name: seal\n    direction: {noise: 0} #!"),
        "recipe.method.direction.noise",
        "must be greater than 0, not 0",
    ),
    "misspelt field of a budget": (
        job(budget="budget:\n    epochs: 16\n    generation_length: 8\n    epoch: 3 #!"),
        "recipe.budget.epoch",
        "did you mean 'epochs'?",
    ),
    "a digest of no weights": (
        job(recipe=f"model: {{init_sha256: {'a' * 64}}} #!"),
        "recipe.model.init_sha256",
        "is about the weights that model.init_from names; give that",
    ),
    "a new head of no weights": (
        job(recipe="model: {new_head: true} #!"),
        "recipe.model.new_head",
        "is about the weights that model.init_from names; give that",
    ),
    "a digest that is none": (
        job(recipe="model: {init_from: w.pth, init_sha256: abc} #!"),
        "recipe.model.init_sha256",
        "match pattern '^[0-9a-f]{64}$'",
    ),
    # Fields that are missing.
    "no recipe": ("placement: {} #!\n", "recipe", "missing; add it"),
    "no path": (job(data="data: {} #!"), "recipe.data.path", "missing; add it: folder of the prepared data"),
    "no method": (
        "name: x\nrecipe: #!\n  data: {path: x}\n  budget: {epochs: 8, generation_length: 8}\n",
        "recipe.method",
        "missing; add it: one of normal, seal,",
    ),
    "no budget": (
        "name: x\nrecipe: #!\n  data: {path: x}\n  method: llf\n",
        "recipe.budget",
        "missing; add it: how long to train (fields: epochs, generation_length)",
    ),
    "half a budget": (job(budget="budget: {epochs: 16} #!"), "recipe.budget.generation_length", "missing"),
    "method without a name": (
        job(method="method: #!\n    ascent_share: 0.25"),
        "recipe.method.name",
        "missing; add it",
    ),
    "rise without a rise": (
        job(method="method:\n    name: seal\n    ascent_rate: {start: 0.1} #!"),
        "recipe.method.ascent_rate.rise",
        "missing; add it",
    ),
    # Values of the wrong kind.
    "boolean seed": (job(recipe="seed: true #!"), "recipe.seed", "must be a whole number, not true"),
    "fractional epochs": (
        job(budget="budget:\n    epochs: 3.5 #!\n    generation_length: 8"),
        "recipe.budget.epochs",
        "must be a whole number, not 3.5",
    ),
    "whole float": (
        job(recipe="batch_size: 32.0 #!"),
        "recipe.batch_size",
        "must be a whole number, not 32.0",
    ),
    "quoted number": (
        job(recipe="optimizer: {lr: '0.1'} #!"),
        "recipe.optimizer.lr",
        "must be a number, not '0.1'; remove the quotes",
    ),
    "text for a number in a method": (
        job(method="method: {name: seal, ascent_rate: '1e-2'} #!"),
        "recipe.method.ascent_rate",
        "must be a number or a mapping of rise, start, factor, cap, not '1e-2'; remove the quotes",
    ),
    "boolean in a method": (
        job(method="method: {name: seal, ascent_share: true} #!"),
        "recipe.method.ascent_share",
        "must be a number, not true",
    ),
    "number for text": (job(data="data: {path: 3} #!"), "recipe.data.path", "must be text, not 3; quote it"),
    "boolean for text": (
        job(data="data: {path: true} #!"),
        "recipe.data.path",
        "must be text, not true; quote it",
    ),
    "no word for a boolean": (
        job(recipe="augment: {flip: maybe} #!"),
        "recipe.augment.flip",
        "must be true or false, not 'maybe'",
    ),
    "text for a boolean": (
        job(recipe="augment: {flip: 'true'} #!"),
        "recipe.augment.flip",
        "must be true or false, not 'true'",
    ),
    "number for a boolean": (
        job(rest="placement: {compile: 1} #!"),
        "placement.compile",
        "must be true or false, not 1",
    ),
    "null section": (
        job(recipe="loss: #!"),
        "recipe.loss",
        "must be a mapping of name, label_smoothing, not null",
    ),
    "list for a section": (job(recipe="model: [resnet18] #!"), "recipe.model", "must be a mapping of arch,"),
    "number for a budget": (
        job(budget="budget: 12 #!"),
        "recipe.budget",
        "must be a mapping of epochs, generation_length, not 12",
    ),
    "number for a method": (job(method="method: 12 #!"), "recipe.method", "must be 'normal', 'seal', "),
    "text for a list": (
        job(rest="placement: {keep: {moments: init}} #!"),
        "placement.keep.moments",
        "must be a list, not 'init'",
    ),
    # Choices that do not exist.
    "architecture by another spelling": (
        job(recipe="model: {arch: ResNet18} #!"),
        "recipe.model.arch",
        "'resnet50', 'preact18' or timm/NAME, not 'ResNet18'; did you mean 'resnet18'?",
    ),
    "network of timm by another spelling": (
        job(recipe="model: {arch: timm/convnext_ato} #!"),
        "recipe.model.arch",
        "timm has no network 'convnext_ato'; did you mean 'timm/convnext_atto'?",
    ),
    "weights that would be downloaded": (
        job(recipe="model: {arch: timm/vit_tiny_patch16_224.augreg_in21k} #!"),
        "recipe.model.arch",
        "names pretrained weights, which are never downloaded; write timm/vit_tiny_patch16_224,",
    ),
    "field of another network": (
        job(recipe="model: {arch: timm/test_convnext, stem: cifar} #!"),
        "recipe.model.stem",
        "is a field of resnet18, resnet34 or resnet50, not of timm/test_convnext; remove it",
    ),
    "field that a network of timm lacks": (
        job(recipe="model: {arch: timm/test_convnext, drop_pth_rate: 0.1} #!"),
        "recipe.model.drop_pth_rate",
        "unknown field; did you mean 'drop_path_rate'?",
    ),
    "wrong type of a field of timm": (
        job(recipe="model: {arch: timm/test_convnext, drop_path_rate: much} #!"),
        "recipe.model.drop_path_rate",
        "must be a number, not 'much'",
    ),
    "network that timm cannot build": (
        job(recipe="model: {arch: timm/test_vit, num_heads: 7} #!"),
        "recipe.model",
        "timm/test_vit: cannot be built with num_heads: 7: ",
    ),
    "split that is no stage of this network": (
        job(recipe="model: {arch: timm/test_convnext}", method="method: {name: llf, split_at: layer3} #!"),
        "recipe.method.split_at",
        "'layer3' does not divide the network; choose one of stages.0, stages.1, stages.2,",
    ),
    "unknown schedule": (
        job(recipe="optimizer: {schedule: linear} #!"),
        "recipe.optimizer.schedule",
        "must be 'cosine', 'step' or 'constant', not 'linear'",
    ),
    "unknown bare method": (job(method="method: sael #!"), "recipe.method", "did you mean 'seal'?"),
    "unknown method": (
        job(method="method:\n    ascent_share: 0.1\n    name: sael #!"),
        "recipe.method.name",
        "must be 'normal', 'seal', 'llf', 'sam', ",
    ),
    "unknown choice in a method": (
        job(method="method: {name: ke, mask: kel} #!"),
        "recipe.method.mask",
        "must be 'kels' or 'wels', not 'kel'; did you mean 'kels'?",
    ),
    "unknown moment": (
        job(rest="placement:\n  keep:\n    moments:\n      - init\n      - forgoten #!"),
        "placement.keep.moments.1",
        "did you mean 'forgotten'?",
    ),
    "use gpu maybe": (
        job(rest="placement: {use_gpu: maybe} #!"),
        "placement.use_gpu",
        "must be true or false or 'auto', not 'maybe'",
    ),
    "wandb on": (
        job(rest="placement: {tracking: {wandb: on}} #!"),
        "placement.tracking.wandb",
        "must be 'auto', 'online', 'offline' or 'off', not 'on'",
    ),
    # Values out of range.
    "lr 0": (job(recipe="optimizer: {lr: 0} #!"), "recipe.optimizer.lr", "must be greater than 0, not 0"),
    "lr infinite": (job(recipe="optimizer: {lr: .inf} #!"), "recipe.optimizer.lr", "must be a finite number"),
    "nan in a method": (
        job(method="method: {name: sam, rho: .nan} #!"),
        "recipe.method.rho",
        "must be a finite number, not nan",
    ),
    "momentum 1": (
        job(recipe="optimizer: {momentum: 1} #!"),
        "recipe.optimizer.momentum",
        "less than 1, not 1",
    ),
    "negative decay": (
        job(recipe="optimizer: {weight_decay: -0.1} #!"),
        "recipe.optimizer.weight_decay",
        "must be at least 0, not -0.1",
    ),
    "noise 1": (
        job(data="data:\n    path: x\n    label_noise: 1.0 #!"),
        "recipe.data.label_noise",
        "less than 1",
    ),
    "negative seed": (job(recipe="seed: -1 #!"), "recipe.seed", "must be at least 0, not -1"),
    "huge seed": (
        job(recipe="seed: 9223372036854775808 #!"),
        "recipe.seed",
        "must be at most 9223372036854775807",
    ),
    "empty path": (job(data="data: {path: ''} #!"), "recipe.data.path", "must be not empty, not ''"),
    "share in a method": (
        job(method="method: {name: seal, ascent_share: 1.5} #!"),
        "recipe.method.ascent_share",
        "must be less than 1, not 1.5",
    ),
    "negative rise": (
        job(method="method:\n    name: seal\n    ascent_rate: {rise: -1} #!"),
        "recipe.method.ascent_rate.rise",
        "must be greater than 0, not -1",
    ),
    "negative rate": (
        job(method="method: {name: seal, ascent_rate: -1} #!"),
        "recipe.method.ascent_rate",
        "must be greater than 0, not -1",
    ),
    "no threads": (job(rest="placement: {threads: 0} #!"), "placement.threads", "must be at least 1, not 0"),
    "no checkpoints": (
        job(rest="placement: {keep: {checkpoints: 0}} #!"),
        "placement.keep.checkpoints",
        "at least 1",
    ),
    # Values that do not go together.
    "broken generations": (
        job(budget="budget: {epochs: 17, generation_length: 8} #!"),
        "recipe.budget",
        "17 epochs are not whole generations of 8; choose epochs as a multiple of generation_length",
    ),
    "no epochs": (
        job(budget="budget: {epochs: 0, generation_length: 8} #!"),
        "recipe.budget",
        "0 epochs are not",
    ),
    "absurd epochs": (
        job(budget="budget:\n    epochs: 1000000000000 #!\n    generation_length: 1"),
        "recipe.budget.epochs",
        "is more than 100000; lower it",
    ),
    "ascent fills the generation": (
        job(method="method:\n    name: seal\n    ascent_share: 0.95 #!"),
        "recipe.method.ascent_share",
        "0.95 of 8 epochs is 8, which leaves nothing of them for the rest; lower the share",
    ),
    "no epoch is left of a generation of one": (
        job(
            method="method:\n    name: seal\n    ascent_share: 0.25 #!",
            budget="budget: {epochs: 2, generation_length: 1}",
        ),
        "recipe.method.ascent_share",
        "0.25 of one epoch is rounded up to one, which leaves nothing for the rest; a generation of it needs",
    ),
    "shares fill the generation": (
        job(method="method: {name: dsd, dense_share: 0.5, sparse_share: 0.5} #!"),
        "recipe.method",
        "dense_share and sparse_share fill the 8 epochs of a generation; lower them",
    ),
    "warm-up fills the generation": (
        job(recipe="optimizer:\n    warmup_share: 0.95 #!"),
        "recipe.optimizer.warmup_share",
        "0.95 of 8 epochs is 8",
    ),
    "warm-up fills the one schedule": (
        job(method="method: {name: normal, schedule: long}", recipe="optimizer: {warmup_share: 0.98} #!"),
        "recipe.optimizer.warmup_share",
        "0.98 of 16 epochs is 16",
    ),
    "uneven shards": (
        job(recipe="batch_size: 32\n  shards: 3 #!"),
        "recipe.shards",
        "a batch of 32 cannot be cut into 3 equal shards; use a divisor of batch_size",
    ),
    "uneven workers": (
        job(recipe="shards: 4", rest="placement:\n  workers: 3 #!"),
        "placement.workers",
        "3 workers cannot share 4 shards; use a divisor of recipe.shards",
    ),
    "uneven elastic workers": (
        job(recipe="shards: 4", rest="placement:\n  workers:\n    min: 1\n    max: 3 #!"),
        "placement.workers.max",
        "3 workers cannot share 4 shards; use a divisor of recipe.shards",
    ),
    "fewest workers above the most": (
        job(recipe="shards: 4", rest="placement:\n  workers:\n    min: 4\n    max: 2 #!"),
        "placement.workers.max",
        "2 is less than min, 4",
    ),
    "two ways of committing": (
        job(rest="placement:\n  checkpoint_every: {epochs: 2, seconds: 60} #!"),
        "placement.checkpoint_every.seconds",
        "give one of epochs, seconds",
    ),
    "elastic workers that lose epochs": (
        job(rest="placement:\n  workers: {min: 1, max: 1}\n  checkpoint_every: {epochs: 2} #!"),
        "placement.checkpoint_every",
        "elastic workers change after any epoch; leave it out",
    ),
    "several workers of a run on a GPU": (
        job(recipe="shards: 2", rest="placement:\n  workers: 2\n  gpus_per_worker: 0.5 #!"),
        "placement.gpus_per_worker",
        "NCCL wants a GPU for each worker; set workers to 1",
    ),
    "no fewest workers": (
        job(recipe="shards: 4", rest="placement:\n  workers: {max: 4} #!"),
        "placement.workers.min",
        "missing; add it: fewest processes that train",
    ),
    "workers as a word": (
        job(rest="placement:\n  workers: all #!"),
        "placement.workers",
        "must be a whole number or a mapping of min, max, not 'all'",
    ),
    "split before everything": (
        job(method="method: {name: llf, split_at: conv1} #!"),
        "recipe.method.split_at",
        "'conv1' does not divide the network; choose one of bn1, layer1,",
    ),
    "split at no stage": (
        job(method="method: {name: llf, split_at: layer5} #!"),
        "recipe.method.split_at",
        "choose one of bn1, layer1, layer2, layer3, layer4, fc",
    ),
    "no such part": (
        job(method="method: {name: sam, part: middle} #!"),
        "recipe.method.part",
        "part 'middle' is not one of all, early, late, head, conv1,",
    ),
    # YAML that could be read otherwise than it was meant.
    "field given twice": (
        job(recipe="seed: 1\n  seed: 2 #!"),
        "recipe.seed",
        "is given twice, first on line 6; keep one",
    ),
    "sexagesimal": (job(recipe="seed: 1:30 #!"), "recipe.seed", "must be a whole number, not '1:30'"),
    "endless number": (job(recipe=f"seed: {'9' * 5000} #!"), "recipe.seed", "is not a number; quote it"),
    "digits alone missing": (job(recipe="seed: 0x_ #!"), "recipe.seed", "'0x_' is not a number; quote it"),
    "tag that does not fit": (job(recipe="seed: !!int x #!"), "recipe.seed", "yaml.org,2002:int' is not"),
    "number as a field": (job(recipe="3: 4 #!"), "recipe", "a field name must be text, not 3; quote it"),
    "list as a field": (job(recipe="? [a] #!\n  : 4"), "recipe", "a field name must be text"),
    "python tag": (
        job(data="data: {path: !!python/object/apply:os.getcwd []} #!"),
        "recipe.data.path",
        "the tag 'tag:yaml.org,2002:python/object/apply:os.getcwd' is not allowed; write plain YAML",
    ),
    "tag on a scalar": (job(data="data: {path: !file x} #!"), "recipe.data.path", "the tag '!file' is not"),
    "tag on a mapping": (job(data="data: !!set {path} #!"), "recipe.data", "set' is not allowed"),
    "bad merge": (job(recipe="loss: {<<: 3} #!"), "recipe.loss", "<< takes a mapping, or a list of mappings"),
    "half a character": (job(data='data: {path: "\\ud800"} #!'), "recipe.data.path", "is not Unicode text"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_values_are_named_with_line_path_and_remedy(tmp_path, name):
    text, field, remedy = BAD[name]
    (line,) = [number for number, line in enumerate(text.splitlines(), 1) if "#!" in line]
    path = file(tmp_path, text)
    (complaint,) = complaints(path)
    assert complaint.startswith(f"{path}:{line}: {field}: ")
    assert remedy in complaint


@pytest.mark.parametrize(
    ("field", "written", "meant"),
    [
        ("recipe.optimizer.lr", "5e-4", 0.0005),
        ("recipe.optimizer.lr", "1.5e1", 15.0),
        ("recipe.optimizer.lr", "1_0.5", 10.5),
        ("recipe.seed", "010", 10),
        ("recipe.seed", "0x10", 16),
        ("recipe.seed", "0o10", 8),
        ("recipe.seed", "1_000", 1000),
        ("recipe.data.path", "2026-01-01", "2026-01-01"),
        ("recipe.data.path", "off", "off"),
        ("recipe.data.path", "1:30", "1:30"),
        ("recipe.augment.flip", "no", False),
        ("recipe.augment.flip", "Off", False),
        ("placement.compile", "yes", True),
        ("placement.use_gpu", "on", True),
        ("placement.tracking.wandb", "off", "off"),
        ("placement.tracking.wandb", "false", "off"),
        ("recipe.method.head_ascends", "yes", True),
    ],
)
def test_yaml_is_version_1_2_and_booleans_may_be_words(tmp_path, field, written, meant):
    read = load_job(file(tmp_path, job()), [f"{field}={written}"])
    for name in field.split("."):
        read = getattr(read, name)
    assert (read, type(read)) == (meant, type(meant))


# Text in which no value can be found, and where: line and column, or line.
BROKEN = {
    "open bracket": ("recipe:\n  data: {path: x\n", ":3:1: ", "check indentation, colons, brackets"),
    "stray colon": ("name: a: b\n", ":1:8: ", "mapping values are not allowed here"),
    "tab": ("recipe:\n\tseed: 1\n", ":2:1: ", "use spaces, not tabs"),
    "unknown alias": ("recipe:\n  data: *here\n", ":2:9: ", "undefined alias 'here'"),
    "two documents": ("a: 1\n---\nb: 1\n", ":2:1: ", "another document"),
    "bell": ("name: x\nrecipe: \a\n", ":2: ", "holds U+0007; remove it"),
    "impossible escape": ('name: "\\UFFFFFFFF"\n', ": ", "is not valid YAML"),
    "empty": ("", ":1: ", "is empty; write a mapping of fields"),
    "comments alone": ("# nothing\n", ":1: ", "is empty"),
    "list": ("- recipe\n", ":1: ", "holds a list; write a mapping of fields"),
    "text": ("recipe\n", ":1: ", "holds a str; write a mapping"),
    "deep": ("[" * 5000, ": ", "is nested too deeply"),
    "deep mapping": ("recipe: " + "{a: " * 5000, ": ", "is nested too deeply"),
    "alias of itself": ("recipe: &a\n  data: *a\n", ": ", "an alias holds itself"),
    "alias bomb": (
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(
            f"{c}: &{c} [{', '.join([f'*{p}'] * 10)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
        ),
        ": ",
        "holds more than 10000 values; use fewer aliases",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_text_that_is_no_mapping_is_refused_where_it_breaks(tmp_path, name):
    text, place, remedy = BROKEN[name]
    path = file(tmp_path, text)
    (complaint,) = complaints(path)
    assert complaint.startswith(f"{path}{place}")
    assert remedy in complaint


def test_files_that_cannot_be_read(tmp_path):
    missing = tmp_path / "missing.yaml"
    assert complaints(missing) == [f"{missing}: no such file; give the path of a YAML file"]
    assert complaints(tmp_path) == [f"{tmp_path}: is a folder; give the path of a YAML file in it"]
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("name: x\nrecipe: é\n".encode("latin-1"))
    assert complaints(latin) == [f"{latin}:2: is not UTF-8 text; save the file as UTF-8"]
    (complaint,) = complaints("a\0b")
    assert "cannot be read" in complaint


def test_every_problem_of_a_file_is_listed_in_its_order(tmp_path):
    text = """\
recipe:
  seed: true
  data: {pth: x}
  budget: {epochs: 16.5, generation_length: 0.5}
  method: {name: seal, ascent_rate: {rise: -1, cpa: 3}, ascend: top}
placement: {workers: 0}
"""
    path = file(tmp_path, text)
    places = [re.match(r".*?:(\d+): (\S+):", line).groups() for line in complaints(path)]
    assert places == [
        ("2", "recipe.seed"),
        ("3", "recipe.data.path"),
        ("3", "recipe.data.pth"),
        ("4", "recipe.budget.epochs"),
        ("4", "recipe.budget.generation_length"),
        ("5", "recipe.method.ascent_rate.rise"),
        ("5", "recipe.method.ascent_rate.cpa"),
        ("5", "recipe.method.ascend"),
        ("6", "placement.workers"),
    ]


def test_every_conflict_is_listed_once(tmp_path):
    text = job(
        method="method: {name: seal, split_at: fx, ascent_share: 0.99}",
        recipe="optimizer: {warmup_share: 0.99}\n  shards: 3",
    )
    fields = [line.split(": ")[1] for line in complaints(file(tmp_path, text))]
    assert sorted(fields) == [
        "recipe.method.ascent_share",
        "recipe.method.split_at",
        "recipe.optimizer.warmup_share",
        "recipe.shards",
    ]


def test_every_structural_problem_is_listed(tmp_path):
    lines = complaints(file(tmp_path, job(recipe="seed: 0x_\n  seed: 2\n  shards: !x 1")))
    assert [line.split(": ")[1] for line in lines] == ["recipe.seed", "recipe.seed", "recipe.shards"]


@pytest.mark.parametrize(
    ("assignment", "field", "remedy"),
    [
        ("recipe.optimizer.learning_rate=1", "recipe.optimizer.learning_rate", "did you mean 'lr'?"),
        ("recipe.optimzer.lr=1", "recipe.optimzer", "did you mean 'optimizer'?"),
        ("optimizer.lr=1", "optimizer", "did you mean recipe.optimizer?"),
        ("recipe.method.ascent_rat=1", "recipe.method.ascent_rat", "did you mean 'ascent_rate'?"),
        ("recipe.method=sael", "recipe.method", "did you mean 'seal'?"),
        ("recipe.method={name: sael}", "recipe.method.name", "did you mean 'seal'?"),
        ("recipe.optimizer.lr='5e-4'", "recipe.optimizer.lr", "remove the quotes"),
        ("recipe.budget.epochs=3.5", "recipe.budget.epochs", "must be a whole number, not 3.5"),
        ("recipe.data.path.x=1", "recipe.data.path", "must be text, not {"),
        ("recipe.budget=5", "recipe.budget", "must be a mapping of epochs, generation_length"),
        ("recipe.loss=null", "recipe.loss", "must be a mapping of name, label_smoothing, not null"),
        ("placement.keep.moments.0=init", "placement.keep.moments", "must be a list"),
        ("recipe.seed=0x_", "", "'0x_' is not a number"),
    ],
)
def test_a_bad_override_is_named(tmp_path, assignment, field, remedy):
    (complaint,) = complaints(file(tmp_path, job()), [assignment])
    assert complaint.startswith(f"--set {assignment}: {field}")
    assert remedy in complaint


@pytest.mark.parametrize(
    "assignment", ["", "=", "=3", "recipe.seed", "recipe.seed=", ".=3", "recipe..seed=3"]
)
def test_an_override_of_another_form_is_refused(tmp_path, assignment):
    (complaint,) = complaints(file(tmp_path, job()), [assignment])
    assert complaint == f"--set {assignment}: is not path.to.field=VALUE, such as recipe.budget.epochs=12"


def test_an_override_whose_value_is_no_yaml_is_refused(tmp_path):
    (complaint,) = complaints(file(tmp_path, job()), ["recipe.method={name: "])
    assert complaint.startswith("--set recipe.method={name: : is not valid YAML: ")


def test_every_bad_override_is_listed(tmp_path):
    assert len(complaints(file(tmp_path, job()), ["a", "b", "recipe.seed=[", "recipe.seed=1"])) == 3
    assert len(complaints(file(tmp_path, job()), ["recipe.seed=a", "recipe.shards=b"])) == 2


def test_changing_the_methods_name_alone_says_what_no_longer_fits(tmp_path):
    path = file(tmp_path, job(method="method: {name: seal, ascent_share: 0.25}"))
    (complaint,) = complaints(path, ["recipe.method.name=llf"])
    assert complaint.startswith(f"{path}:4: recipe.method.ascent_share: is a field of seal, not of llf")


def check(path, overrides=()):
    """Loading gives a job that survives its own YAML, or a ConfigError whose lines say where."""
    try:
        job = load_job(path, overrides)
    except ConfigError as error:
        lines = str(error).split("\n")
    else:
        assert load_job(file(path.parent, dump_job(job))) == job
        return
    assert all(line.startswith((f"{path}:", "--set ")) and line.encode() for line in lines)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


WORDS = st.sampled_from(sorted(set(re.findall(r"[\w.]+", "".join(path.read_text() for path in SHIPPED)))))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | WORDS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | SCALARS, inner, max_size=5),
    max_leaves=12,
)
SIGNS = [*"{}[]:,&*!|>'\"%@`#?-<\n\t \\", "<<: ", "- ", "? ", "!!int ", "&a ", "*a", "\\u", "\ud800", "\0"]


@settings(max_examples=150)
@given(data=st.binary() | st.text().map(lambda text: text.encode(errors="ignore")))
def test_any_bytes_are_a_job_or_a_config_error(data, folder):
    path = folder / "bytes.yaml"
    path.write_bytes(data)
    check(path)


@settings(max_examples=150)
@given(value=VALUES)
def test_any_yaml_is_a_job_or_a_config_error(value, folder):
    path = folder / "values.yaml"
    path.write_bytes(yaml.safe_dump(value, allow_unicode=True).encode())
    check(path)


@settings(max_examples=150)
@given(data=st.data())
def test_a_job_with_other_values_is_a_job_or_a_config_error(data, folder):
    value = yaml.safe_load(data.draw(st.sampled_from(SHIPPED)).read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        at = value
        while isinstance(at, dict) and at:
            key = data.draw(st.sampled_from(sorted(at, key=str)))
            if not isinstance(at[key], dict) or data.draw(st.booleans()):
                at[data.draw(st.just(key) | WORDS)] = data.draw(VALUES)
                break
            at = at[key]
    path = folder / "changed.yaml"
    path.write_bytes(yaml.safe_dump(value, allow_unicode=True).encode())
    check(path)


@settings(max_examples=150)
@given(data=st.data())
def test_a_job_with_other_letters_is_a_job_or_a_config_error(data, folder):
    text = data.draw(st.sampled_from(SHIPPED)).read_text()
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        stop = start + data.draw(st.integers(0, 12))
        text = text[:start] + data.draw(st.sampled_from(SIGNS) | WORDS | st.text(max_size=4)) + text[stop:]
    path = folder / "letters.yaml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    check(path)


@settings(max_examples=150)
@given(
    path=st.lists(WORDS | st.text(max_size=4), min_size=1, max_size=4).map(".".join)
    | st.sampled_from(["recipe.method", "recipe.method.ascent_rate", "recipe.budget", "placement.threads"]),
    value=st.text() | VALUES.map(lambda value: yaml.safe_dump(value, default_flow_style=True)),
)
def test_any_override_gives_a_job_or_a_config_error(path, value, folder):
    shipped = folder / "shipped.yaml"
    shipped.write_bytes(SHIPPED[0].read_bytes())
    check(shipped, [f"{path}={value}".replace("\n", " ")])


def test_a_part_of_which_nothing_is_left_to_ascend_is_refused(tmp_path: Path) -> None:
    fields = "{name: seal, split_at: fc, ascend: late}"
    file = tmp_path / "run.yaml"
    file.write_text(
        f"recipe:\n  data: {{path: x}}\n  budget: {{epochs: 16, generation_length: 8}}\n  method: {fields}\n"
    )
    with pytest.raises(ConfigError, match=r"yaml:4: recipe\.method\.split_at: fc leaves nothing to ascend"):
        load_job(file)
    file.write_text(file.read_text().replace("ascend: late", "ascend: late, head_ascends: true"))
    assert load_job(file).recipe.method.split_at == "fc"
