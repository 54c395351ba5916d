"""What a normalizer promises, one function a promise, in the words that the verdict is told in.

Each raises Broken where the promise is not kept, Skipped where it is not made, and returns where it is kept.
"""

from __future__ import annotations

import copy
import difflib
import io
import pickle
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError

import normbench
from normbench import norms
from normbench.check.recording import a_step_can_be_recorded
from normbench.check.subject import Broken, Skipped, Subject, alike, finite, forward
from normbench.models import build as build_model
from normbench.options import ArchOptions

Promise = Callable[[Subject], None]
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
MODES = {"training": True, "evaluation": False}
# Rounding of a few dozen operations on values around 1 … 10.
EXACT = 1e-10


def can_be_made_and_run(subject: Subject) -> None:
    """can be made, and run forward on a few images; without that nothing else is tried"""
    forward(subject.unit(torch.float32), subject.pictures(dtype=torch.float32))


def keeps_shape_and_dtype(subject: Subject) -> None:
    """gives the shape and dtype it got, with finite values and gradients: float64, float32, bfloat16, float16"""
    for dtype in DTYPES:
        for mode, training in MODES.items():
            unit = subject.unit(torch.promote_types(dtype, torch.float32), training=training, trained=1)
            x = subject.pictures(dtype=dtype).requires_grad_()
            y = forward(unit, x)
            if (y.shape, y.dtype) != (x.shape, dtype):
                hint = "; end the forward with .to(x.dtype)" if y.dtype != dtype else ""
                raise Broken(f"{mode}: got {tuple(y.shape)} of {y.dtype}, expected {tuple(x.shape)} of {dtype}{hint}")
            y.float().square().mean().backward()
            for what, tensor in (("output", y), ("gradient of the input", x.grad)):
                finite(tensor, f"{what} in {mode}, {dtype}")


def half_precision_statistics(subject: Subject) -> None:
    """takes the statistics of half-precision input in float32"""
    unit = subject.unit(torch.float32)
    exact = copy.deepcopy(unit).double()
    for dtype in (torch.bfloat16, torch.float16):
        x = (subject.pictures(4, 8, 8) * 20 + 1000).to(dtype)
        expected = forward(copy.deepcopy(exact), x.double())
        span = expected.abs().max().item()
        alike(forward(copy.deepcopy(unit), x), expected, 2 * torch.finfo(dtype).eps * max(span, 1), str(dtype))


def computes_in_float64(subject: Subject) -> None:
    """computes in float64 when it is in float64, constants included"""
    late, early = (subject.unit(dtype).double() for dtype in (torch.float32, torch.float64))
    early.load_state_dict(late.state_dict())
    x = subject.pictures()
    y = forward(early, x)
    if torch.equal(y.float().double(), y):
        raise Broken("every value of a float64 output is a float32 one: expected nothing to be rounded on the way")
    alike(forward(late, x), y, 1e-12, "converted after it was made in float32")


def any_memory_format(subject: Subject) -> None:
    """gives the same for contiguous, channels_last and strided input, and channels_last for channels_last"""
    for mode, training in MODES.items():
        unit, x = subject.unit(training=training, trained=1), subject.pictures()
        if _draws(unit, x):
            continue  # masks lie in memory as the maps do
        expected = forward(copy.deepcopy(unit), x)
        last = forward(copy.deepcopy(unit), x.contiguous(memory_format=torch.channels_last))
        alike(last, expected, EXACT, f"channels_last in {mode}")
        if not last.is_contiguous(memory_format=torch.channels_last):
            raise Broken(f"{mode}: channels_last input gave another layout, expected channels_last: a hidden copy")
        alike(
            forward(copy.deepcopy(unit), torch.cat([x, x], 3)[..., : x.shape[3]]), expected, EXACT, f"strides in {mode}"
        )


def one_image(subject: Subject) -> None:
    """takes one image, finite forward and backward (in training its least batch)"""
    for mode, training in MODES.items():
        _finite(subject, (subject.least(1) if training else 1, 5, 4), mode)


def one_pixel(subject: Subject) -> None:
    """takes maps of 1×1, finite forward and backward"""
    for mode in MODES:
        _finite(subject, (subject.least(4), 1, 1), mode)


def the_modes_differ_as_claimed(subject: Subject) -> None:
    """differs between training and evaluation if, and only if, it says so (train_eval_differ)"""
    unit, x = subject.unit(trained=2), subject.pictures()
    differ = not torch.allclose(forward(copy.deepcopy(unit), x), forward(unit.eval(), x), atol=EXACT)
    _said(subject, "train_eval_differ", differ)
    if differ is not subject.row.train_eval_differ:
        said = "the same in both" if subject.row.train_eval_differ else "different"
        raise Broken(f"train_eval_differ={subject.row.train_eval_differ}, and the two modes gave {said}")


def mixes_as_claimed(subject: Subject) -> None:
    """sees other images of the batch in training if, and only if, it says so (mixes_samples)"""
    unit, x = subject.unit(), subject.pictures()
    _no_draws(unit, x)
    together = forward(copy.deepcopy(unit), x)
    least = subject.row.least_batch
    alone = torch.cat([forward(copy.deepcopy(unit), part) for part in x.split(least)])
    mixes = not torch.allclose(together, alone, atol=EXACT)
    _said(subject, "mixes_samples", mixes)
    if mixes is not subject.row.mixes_samples:
        said = "changed nothing" if subject.row.mixes_samples else "changed an image's output"
        raise Broken(f"mixes_samples={subject.row.mixes_samples}, and the other images of the batch {said}")


def workers_are_apart(subject: Subject) -> None:
    """gives images of batch=2 the outputs and gradients of separate forwards, and keeps the mean of their statistics"""
    row = subject.row
    if not row.mixes_samples or row.joins_workers:
        raise Skipped(
            "its statistics are of one image" if not row.mixes_samples else "its statistics are of all workers"
        )
    if not row.takes_batch:
        raise Skipped("its constructor takes no batch: workers are run one after the other")
    unit, x = subject.unit(batch=2), subject.pictures()
    _no_draws(unit, x)
    together, apart = copy.deepcopy(unit), [copy.deepcopy(unit) for _ in range(len(x) // 2)]
    got_x, expected_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    got = forward(together, got_x)
    expected = torch.cat([forward(worker, part) for worker, part in zip(apart, expected_x.split(2), strict=True)])
    alike(got, expected, EXACT, "outputs")
    got.square().sum().backward()
    expected.square().sum().backward()
    assert got_x.grad is not None
    assert expected_x.grad is not None
    alike(got_x.grad, expected_x.grad, 1e-9, "gradients of the input")
    for key, value in together.named_buffers():
        if value.is_floating_point():
            mean = torch.stack([dict(worker.named_buffers())[key] for worker in apart]).mean(0)
            alike(value, mean, 1e-9, f"buffer {key} against the workers' mean")


def evaluation_is_of_one_image(subject: Subject) -> None:
    """evaluates an image alike alone and in any batch"""
    unit, x = subject.unit(training=False, trained=3), subject.pictures()
    alone = torch.cat([forward(unit, image[None]) for image in x])
    alike(forward(unit, x), alone, EXACT, "in a batch and alone")


def evaluation_changes_nothing(subject: Subject) -> None:
    """leaves its buffers alone in evaluation, and gives the same twice, whatever was drawn"""
    unit, x = subject.unit(training=False, trained=2), subject.pictures()
    before = {key: value.clone() for key, value in unit.state_dict().items()}
    alike(forward(unit, x, seed=1), forward(unit, x, seed=2), 0.0, "a second time")
    for key, value in unit.state_dict().items():
        if not torch.equal(value, before[key]):
            raise Broken(f"{key} changed in evaluation")


def state_goes_there_and_back(subject: Subject) -> None:
    """keeps all that its outputs depend on in its state_dict, which loads into a fresh unit"""
    unit, x = subject.unit(trained=3), subject.pictures()
    content = io.BytesIO()
    torch.save(unit.state_dict(), content)
    content.seek(0)
    fresh = subject.unit()
    fresh.load_state_dict(torch.load(content, weights_only=True))
    for mode, training in MODES.items():
        got, expected = (forward(copy.deepcopy(made).train(training), x) for made in (fresh, unit))
        alike(got, expected, 0.0, f"{mode} after a load")


def copies_are_equal(subject: Subject) -> None:
    """is the same after copy.deepcopy, and after pickle, as torch.save takes whole modules"""
    unit, x = subject.unit(trained=2), subject.pictures()
    expected = forward(copy.deepcopy(unit), x)
    try:
        pickled = pickle.loads(pickle.dumps(unit))
    except pickle.PicklingError as error:
        if not subject.row.users:
            raise
        raise Skipped(f"a class of a file is not importable by its name: {error}") from None
    alike(forward(pickled, x), expected, 0.0, "pickled")


def autocast_changes_nothing(subject: Subject) -> None:
    """gives bfloat16 for bfloat16 under autocast, the same as outside of it"""
    unit, x = subject.unit(torch.float32), subject.pictures(dtype=torch.bfloat16)
    expected = forward(copy.deepcopy(unit), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = forward(unit, x)
    if got.dtype != torch.bfloat16:
        raise Broken(f"got {got.dtype}, expected bfloat16, as the convolution before it gives; end with .to(x.dtype)")
    alike(got, expected, 0.05 * expected.abs().max().item(), "under autocast")


def compiles(subject: Subject) -> None:
    """is one graph under torch.compile, with outputs and gradients that do not drift over three steps"""
    row = subject.row
    if row.own_gradient:
        raise Skipped("a backward of its own that keeps state cannot be compiled, and such cells are skipped")
    for mode, training in MODES.items():
        torch.compiler.reset()
        plain = subject.unit(training=training, trained=1, batch=2)
        compiled = copy.deepcopy(plain)
        run = torch.compile(compiled, fullgraph=True, backend="aot_eager")
        for step in range(3):
            x, again = (subject.pictures(seed=20 + step).requires_grad_() for _ in range(2))
            try:
                got = forward(run, x)  # type: ignore[arg-type]
            except Exception as error:
                raise Broken(f"{mode}: {type(error).__name__}: {str(error).strip().splitlines()[0][:160]}") from None
            _alike_both_ways(got, x, forward(plain, again), again, f"{mode}, step {step + 1}")


def _alike_both_ways(got: Tensor, x: Tensor, expected: Tensor, again: Tensor, words: str) -> None:
    """Outputs, and the gradients of what they were made of."""
    alike(got, expected, EXACT, words)
    got.square().sum().backward()
    expected.square().sum().backward()
    assert x.grad is not None
    assert again.grad is not None
    alike(x.grad, again.grad, 1e-8, f"gradient, {words}")


def gradients_are_true(subject: Subject) -> None:
    """has the gradient of its formula, against finite differences in float64"""
    if subject.row.own_gradient or subject.row.held_constant:
        raise Skipped("its backward is not the derivative of its forward, by its definition")
    for mode, training in MODES.items():
        unit = subject.unit(training=training, trained=1, activation=nn.Softplus())
        x = subject.pictures(subject.least(2), 3, 2).requires_grad_()
        names = [name for name, parameter in unit.named_parameters() if parameter.requires_grad]

        def output(x: Tensor, *values: Tensor, unit: nn.Module = unit, names: list[str] = names) -> Tensor:
            torch.manual_seed(3)
            buffers = {name: buffer.clone() for name, buffer in unit.named_buffers()}  # which a forward moves
            y: Tensor = torch.func.functional_call(unit, buffers | dict(zip(names, values, strict=True)), (x,))
            return y

        learned = [unit.get_parameter(name).detach().requires_grad_() for name in names]
        try:
            torch.autograd.gradcheck(output, (x, *learned), fast_mode=True, atol=1e-5, rtol=1e-3)
        except GradcheckError as error:
            raise Broken(f"{mode}: {' '.join(str(error).split())[:200]}") from None


def parameters_learn(subject: Subject) -> None:
    """gives every parameter a gradient"""
    unit = subject.unit()
    if not list(unit.parameters()):
        raise Skipped("it has none")
    forward(unit, subject.pictures().requires_grad_()).square().sum().backward()
    idle = [name for name, parameter in unit.named_parameters() if parameter.requires_grad and parameter.grad is None]
    if idle:
        raise Broken(f"no gradient for {', '.join(idle)}; expected each parameter to have a part in the output")


def input_is_left_alone(subject: Subject) -> None:
    """does not edit its input, in place or through what comes after it"""
    for mode, training in MODES.items():
        for activation in (nn.ReLU(inplace=True), None):
            unit, x = subject.unit(training=training, activation=activation), subject.pictures()
            before = x.clone()
            y = forward(unit, x)
            y.detach().zero_()
            if not torch.equal(x, before):
                raise Broken(f"{mode}: its input changed; work out of place, and give no view of the input back")


def adds_a_residual(subject: Subject) -> None:
    """adds what it is given as ``residual`` before the activation, where its forward takes one"""
    if not subject.row.takes_residual:
        raise Skipped("its forward takes no residual: where one is added, that is done behind it")
    residual = subject.pictures(seed=4)
    for mode, training in MODES.items():
        unit = subject.unit(training=training, trained=1)
        bare = subject.unit(training=training, trained=1, activation=None)
        for what, added in (("a residual", residual), ("one that broadcasts", residual[:1, :, :1, :1])):
            x, again = (subject.pictures().requires_grad_() for _ in range(2))
            got = copy.deepcopy(unit)(x, added)
            expected = (forward(copy.deepcopy(bare), again) + added).relu()
            _alike_both_ways(got, x, expected, again, f"{what} in {mode}")


def takes_batchnorms_weights(subject: Subject) -> None:
    """takes weight and bias from a BatchNorm2d's state_dict"""
    unit = subject.unit(torch.float32)
    own = dict(unit.named_parameters())
    shared = [key for key in ("weight", "bias") if key in own and own[key].shape == (subject.channels,)]
    if not shared:
        raise Skipped("it has no weight and bias of one value a channel")
    plain = nn.BatchNorm2d(subject.channels)
    nn.init.uniform_(plain.weight), nn.init.uniform_(plain.bias)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unit.load_state_dict(plain.state_dict(), strict=False)
    for key in shared:
        alike(getattr(unit, key), getattr(plain, key), 0.0, key)


def trains_in_a_network(subject: Subject) -> None:
    """takes the place of every BatchNorm2d of a ResNet, and trains there: three steps, finite"""
    torch.manual_seed(0)
    plain = build_model(ArchOptions("resnet8"), num_classes=4, picture_size=8)
    net = normbench.apply(plain, subject.name, batch=4, **subject.options)
    hooks = norms.step_hooks(net)
    update = torch.optim.SGD(net.parameters(), lr=0.01)
    for step in range(3):
        x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        update.zero_grad()
        loss = nn.functional.cross_entropy(forward(net, x), torch.arange(8) % 4)
        finite(loss, f"loss of step {step + 1}")
        loss.backward()
        hooks.gradients()
        update.step()
        with torch.no_grad():
            hooks.updated(lambda x=x: forward(net, x))  # type: ignore[misc]
    finite(forward(net.eval(), x), "output in evaluation")


def _finite(subject: Subject, shape: tuple[int, int, int], mode: str) -> None:
    unit = subject.unit(training=MODES[mode], trained=1)
    x = subject.pictures(*shape).requires_grad_()
    y = forward(unit, x)
    y.sum().backward()
    for what, tensor in (("output", y), ("gradient", x.grad)):
        finite(tensor, f"{what} in {mode} for {shape[0]} images of {shape[1]}×{shape[2]}")


def _said(subject: Subject, trait: str, found: bool) -> None:
    """Raise Skipped where a user's class does not claim a trait, and say what to claim; Broken where it is misspelt."""
    if subject.row.users and not hasattr(subject.row.unit, trait):
        near = difflib.get_close_matches(trait, vars(subject.row.unit), n=1, cutoff=0.85)
        if near:
            raise Broken(f"the class says {near[0]}, which means nothing; did you mean {trait}?")
        raise Skipped(f"the class does not say; as it behaves it could say {trait} = {found}")


def _no_draws(unit: nn.Module, x: Tensor) -> None:
    """Raise Skipped where training draws random numbers: then no two forwards over other images are comparable."""
    if _draws(unit, x):
        raise Skipped("it draws random numbers in training, other ones for other images")


def _draws(unit: nn.Module, x: Tensor) -> bool:
    one, other = (forward(copy.deepcopy(unit), x, seed=seed) for seed in (1, 2))
    return not torch.equal(one, other)


ALL: tuple[Promise, ...] = (
    can_be_made_and_run,
    keeps_shape_and_dtype,
    half_precision_statistics,
    computes_in_float64,
    any_memory_format,
    one_image,
    one_pixel,
    the_modes_differ_as_claimed,
    mixes_as_claimed,
    workers_are_apart,
    evaluation_is_of_one_image,
    evaluation_changes_nothing,
    state_goes_there_and_back,
    copies_are_equal,
    autocast_changes_nothing,
    compiles,
    a_step_can_be_recorded,
    gradients_are_true,
    parameters_learn,
    input_is_left_alone,
    adds_a_residual,
    takes_batchnorms_weights,
    trains_in_a_network,
)
