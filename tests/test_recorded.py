"""Does a recording name the slip in the code of a loop, and does its look-alike stay silent?"""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_loop import network, train
from torch import nn

from diag_lib import symptoms, verdict
from diag_lib.causes import CAUSES
from diag_lib.errors import UserError
from diag_lib.evidence import FINDINGS
from diag_lib.history import read_history
from diag_lib.plots import symptoms as pictures
from diag_lib.recorder import TrainingRecorder
from diag_lib.recorder_signals import made_by, rank_auc
from diag_lib.screens import Case, RuledOut, Suspicion
from diag_lib.settings import Settings
from diag_lib.statistics import Auc

SCREENS = {cause.id: cause.screen for cause in CAUSES}
CODE = {
    "evaluation_bug": "evaluation",
    "stale_checkpoint": "checkpoint",
    "numeric_overflow": "overflow",
    "detached_graph": "gradient_reach",
    "frozen_parameters": "moved",
    "loss_sign": "loss_sign",
    "loss_reduction": "loss_reduction",
    "wrong_activation": "activation",
    "pooling_mismatch": "pooling",
}
LEARNS = Auc(0.97, (0.96, 0.98), 0.005, 500, 500, True)
CHOSEN = Settings().with_overrides(
    {
        "student.trainable_s1": ["all"],
        "student.trainable_s2": ["all"],
        "training.lr_s1": 0.01,
        "training.lr_s2": 0.01,
    }
)


def diagnose(path, **overrides):
    chosen = CHOSEN.with_overrides({key.replace("__", "."): value for key, value in overrides.items()})
    return symptoms.diagnose(read_history(path), chosen)


def opinions(result, status_quo=LEARNS):
    """What every cause makes of the recording, beside a status quo that learns when trained here."""
    case = Case(
        result.settings, {"symptoms": result.evidence}, {"status_quo": status_quo} if status_quo else {}
    )
    return {cause: screen(case) for cause, screen in SCREENS.items()}


def suspected(result, **more):
    return {cause for cause, said in opinions(result, **more).items() if isinstance(said, Suspicion)}


def record(tmp_path, **parts):
    path = tmp_path / "run.jsonl"
    path.unlink(missing_ok=True)
    train(path, **parts)
    return diagnose(path)


def shuffled(y, z, epoch):
    return rank_auc(y, z[torch.randperm(len(z), generator=torch.Generator().manual_seed(epoch))])


def cut_features(model):
    model.cut = True
    return model


def squashed(z, y):
    return F.binary_cross_entropy_with_logits(torch.sigmoid(z), y)


def head_only(model):
    return model.head.parameters()


def fp16_like(z, y):
    return F.binary_cross_entropy_with_logits(z, y) * torch.where(z.abs().max() > 0.3, math.inf, 1.0)


def summed(s, t):
    return F.mse_loss(s, t, reduction="sum")


def negated(s, t):
    return -F.mse_loss(s, t)


BROKEN = {
    "evaluation_bug": {"reported": shuffled},
    "stale_checkpoint": {"evaluated": lambda model, start, epoch: start},
    "numeric_overflow": {"task": fp16_like},
    "detached_graph": {"model": lambda: cut_features(network()), "lr": 1e-4},
    "frozen_parameters": {"optimised": head_only, "lr": 1e-4},
    "loss_sign": {"distill": negated, "lr": 0.03},
    "loss_reduction": {
        "distill": summed,
        "teacher": lambda x: torch.flip(x[:, :1, :4, :4], [0]),
        "alpha": 0.01,
    },
    "wrong_activation": {"task": squashed, "alpha": 0.0, "lr": 1e-4},
}


class Probable(torch.nn.Module):
    """A network whose output is a probability."""

    def __init__(self, sharpness: float = 1.0) -> None:
        super().__init__()
        self.net = network()
        with torch.no_grad():
            self.net.head.weight.mul_(sharpness)

    def forward(self, x):
        return torch.sigmoid(self.net(x))


def start_in_range(model):
    """Raw logits that all start between 0 and 1."""
    with torch.no_grad():
        model.head.weight.mul_(0.01)
        model.head.bias.fill_(0.4)
    return model


def parts_of(parts):
    return {key: part() if key == "model" else part for key, part in parts.items()}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Each broken loop and the healthy one, recorded once."""
    folder = tmp_path_factory.mktemp("recordings")
    for name, parts in {**BROKEN, "healthy": {}}.items():
        train(folder / f"{name}.jsonl", **parts_of(parts))
    return folder


@pytest.mark.parametrize("cause", BROKEN)
def test_a_slip_in_the_code_is_named_and_nothing_else(recordings, cause):
    rate = BROKEN[cause].get("lr", 0.01)
    result = diagnose(recordings / f"{cause}.jsonl", training__lr_s1=rate, training__lr_s2=rate)
    said = opinions(result)[cause]
    assert isinstance(said, Suspicion), said
    assert said.direct and not said.weak
    found = result.finding(CODE[cause])
    assert (found.answer, found.severity) == ("yes", "error")
    assert found.message.endswith(".") and "nan" not in found.message
    assert found.id in said.evidence and said.because == found.message.removesuffix(".")
    assert suspected(result) == {cause}


def test_a_healthy_loop_raises_no_suspicion_and_every_check_has_an_answer(recordings):
    result = diagnose(recordings / "healthy.jsonl")
    assert suspected(result) == set()
    answers = {finding.id: finding.answer for finding in symptoms.recorded_findings(result)}
    assert len(answers) == 14
    assert answers.pop("symptoms.losses_agree") != "no"
    assert answers.pop("symptoms.teacher_fit") == "yes"
    # So few images leave a pooling open where a processor rounds otherwise.
    assert answers.pop("symptoms.pooling") in ("no", "undecided")
    assert set(answers.values()) == {"no"}, answers
    assert result.auc is not None and result.finding("auc_at_chance").ci == result.auc.ci
    assert result.auc.ci[0] > 0.9


def test_without_a_status_quo_to_compare_only_a_recording_without_signal_fails(recordings):
    for cause in ("detached_graph", "evaluation_bug", "numeric_overflow"):
        assert cause in suspected(diagnose(recordings / f"{cause}.jsonl"), status_quo=None)


# ---- look-alikes


class Shadow:
    """An exponential moving average of the weights, evaluated in place of them as many people do."""

    def __init__(self):
        self.average, self.kept = None, None

    def swap_in(self, model, epoch):
        now = copy.deepcopy(model.state_dict())
        old = self.average or now
        self.average = {k: 0.5 * old[k] + 0.5 * v if v.is_floating_point() else v for k, v in now.items()}
        self.kept = now
        model.load_state_dict(self.average)

    def swap_out(self, model, epoch):
        model.load_state_dict(self.kept)


class Best:
    """The best epoch's weights are loaded for the last validation."""

    def __init__(self, last):
        self.states, self.last = [], last

    def load(self, model, epoch):
        self.states.append(copy.deepcopy(model.state_dict()))
        if epoch == self.last:
            model.load_state_dict(self.states[1])


def best_so_far():
    seen = []

    def report(y, z, epoch):
        seen.append(rank_auc(y, z))
        return max(seen)

    return report


def rare_nan():
    calls = []

    def step(arguments):
        calls.append(1)
        return {**arguments, "loss": float("nan")} if len(calls) == 77 else arguments

    return step


SHADOW, BEST = Shadow(), Best(3)
LOOK_ALIKES = {
    "evaluation: rounded": ("evaluation", {"reported": lambda y, z, e: round(rank_auc(y, z), 2)}),
    "evaluation: in percent": ("evaluation", {"reported": lambda y, z, e: 100 * rank_auc(y, z)}),
    "evaluation: best so far": ("evaluation", {"reported": best_so_far(), "lr": 0.05, "alpha": 0.0}),
    "checkpoint: moving average": (
        "checkpoint",
        {"before_validation": SHADOW.swap_in, "after_validation": SHADOW.swap_out},
    ),
    "checkpoint: weights that do not move": ("checkpoint", {"lr": 0.0}),
    "overflow: large but finite": ("overflow", {"distill": lambda s, t: 1e6 * F.mse_loss(s, t)}),
    "gradient_reach: an auxiliary head": ("gradient_reach", {"model": lambda: network(auxiliary=True)}),
    "gradient_reach: dropout": ("gradient_reach", {"model": lambda: network(dropout=0.5)}),
    "loss_sign: a teacher that is upside down": ("loss_sign", {"teacher": lambda x: -x[:, :1, :4, :4]}),
    "loss_sign: no distillation": ("loss_sign", {"alpha": 0.0}),
    "loss_reduction: a temperature": ("loss_reduction", {"distill": lambda s, t: 16 * F.mse_loss(s, t)}),
    "loss_reduction: standardised": (
        "loss_reduction",
        {"distill": lambda s, t: F.mse_loss((s - s.mean()) / s.std(), (t - t.mean()) / t.std())},
    ),
    "activation: Huber": ("activation", {"distill": F.smooth_l1_loss}),
    "activation: label smoothing": (
        "activation",
        {"task": lambda z, y: F.binary_cross_entropy_with_logits(z, 0.9 * y + 0.05)},
    ),
    "pooling: plain": ("pooling", {}),
}


@pytest.mark.parametrize("case", LOOK_ALIKES)
def test_a_look_alike_is_not_taken_for_a_slip(tmp_path, case):
    name, parts = LOOK_ALIKES[case]
    result = record(tmp_path, **parts_of(parts))
    assert result.finding(name).answer != "yes", result.finding(name).message
    assert not set(CODE) & {c for c in suspected(result) if CODE.get(c) == name}


def test_the_best_checkpoint_for_the_last_validation_is_no_stale_one(tmp_path):
    seen = iter([0.6, 0.9, 0.7, 0.9])
    result = record(tmp_path, before_validation=BEST.load, reported=lambda y, z, e: next(seen))
    assert result.finding("checkpoint").answer == "no"
    assert "best epoch" in result.finding("checkpoint").message


def test_one_broken_batch_is_left_open(tmp_path):
    result = record(tmp_path, step_arguments=rare_nan(), epochs=16, every=100)
    assert result.finding("overflow").answer == "undecided"
    assert "numeric_overflow" not in suspected(result)


def test_a_slip_without_harm_is_ruled_out_in_words(tmp_path):
    """A head that learns alone, on features that are good enough, is a choice."""
    result = record(tmp_path, optimised=head_only, lr=0.05, epochs=6)
    assert result.auc.ci[0] > 0.9
    assert result.finding("moved").answer == "yes"
    said = opinions(result, status_quo=LEARNS)["frozen_parameters"]
    assert isinstance(said, RuledOut)
    assert "learns all the same" in said.because


def test_layers_that_the_settings_freeze_too_are_no_fault(tmp_path):
    train(tmp_path / "r.jsonl", optimised=head_only, lr=1e-4)
    kept = {"student__trainable_s1": ["head"], "student__trainable_s2": ["head"]}
    assert diagnose(tmp_path / "r.jsonl", **kept).finding("moved").answer == "no"


def test_a_whole_loss_without_gradient_is_a_cut_graph(tmp_path):
    result = record(tmp_path, outputs=lambda patches: patches.detach())
    assert result.finding("gradient_reach").answer == "yes"
    assert "no gradient at all" in result.finding("gradient_reach").message


def test_an_fp16_scale_that_collapses_is_an_overflow_and_one_that_settles_is_none(tmp_path):
    for scale, answer in ((2.0**-4, "yes"), (2.0**11, "no")):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        assert record(tmp_path, scaler=scaler).finding("overflow").answer == answer


@pytest.mark.parametrize(("factor", "cause"), [(1e-4, "lr_too_low"), (300.0, "lr_too_high")])
def test_a_rate_other_than_the_configured_one_is_named_if_the_settings_learn_here(tmp_path, factor, cause):
    model = cut_features(network()) if factor > 1 else network()
    result = record(tmp_path, lr=0.01 * factor, model=model, alpha=0.0)
    assert result.finding("update_ratio").answer == "yes"
    failed = Auc(0.55, (0.45, 0.62), 0.04, 48, 48, True)
    finding = result.finding("auc_at_chance")
    object.__setattr__(finding, "ci", failed.ci)
    assert cause in suspected(result)
    assert cause not in suspected(result, status_quo=failed)


def test_another_pooling_is_named_where_it_would_rescue(tmp_path):
    """The recorded logits are those of the worst patch; the patches themselves know more."""
    path = tmp_path / "r.jsonl"
    train(path, epochs=6)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for event in lines:
        if event["event"] == "epoch":
            event["seen"]["scores"]["logits"] = [math.sin(7 * i) for i in range(96)]
    path.write_text("\n".join(map(json.dumps, lines)).replace('"event": "start"', '"event":"start"'))
    result = diagnose(path)
    assert result.finding("pooling").answer == "yes"
    assert "pooling_mismatch" in suspected(result)


def test_two_numbers_that_agree_are_not_enough(tmp_path):
    """One look claims nothing."""
    result = record(tmp_path, epochs=1, look_every=100, every=100, distill=summed)
    assert result.finding("loss_reduction").answer == "no"


# ---- the step and the verdict


def test_few_images_do_not_make_a_wrong_auc_right(tmp_path):
    """Eight images rank at 0.81; a loop that reports 0.5 is not called right because chance could explain it."""
    model = nn.Linear(2, 1)
    logits, labels = (
        torch.tensor([0.1, 0.2, 0.9, 0.3, 0.8, 0.5, 0.6, 0.4]),
        torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]),
    )
    with TrainingRecorder(tmp_path / "r.jsonl", model, torch.optim.SGD(model.parameters(), 0.1)) as rec:
        for _ in range(3):
            rec.step(1.0)
            rec.epoch(val_auc=0.5, val_logits=logits, val_labels=labels)
    found = diagnose(tmp_path / "r.jsonl").evidence.finding("symptoms.evaluation")
    assert found.answer == "undecided" and "too few" in found.message


@pytest.mark.parametrize("cause", ["evaluation_bug", "frozen_parameters"])
def test_the_verdict_names_the_slip_as_shown_without_training(recordings, tmp_path, cause):
    """Only step 00 has run; a cause that an experiment would prove elsewhere needs none here."""
    rate = BROKEN[cause].get("lr", 0.01)
    chosen = {"training.lr_s1": rate, "training.lr_s2": rate, "history": str(recordings / f"{cause}.jsonl")}
    chosen = CHOSEN.with_overrides(chosen)
    symptoms.run(chosen, tmp_path / "run", progress=False)
    found = verdict.run(chosen, tmp_path / "run", progress=False).to_dict()
    (named,) = found["causes"]
    assert (named["id"], named["status"], named["proof"]["kind"]) == (cause, "established", "direct")
    assert named["evidence"] == [f"symptoms.{CODE[cause]}", "symptoms.auc_at_chance"]
    assert named["fix"]["settings"] is None and named["fix"]["actions"]
    assert found["healthy"] is False and not found["complete"]
    assert not list((tmp_path / "run" / "artifacts" / "arms").iterdir())


def test_findings_and_figure_of_a_recording(recordings):
    for path in sorted(recordings.glob("*.jsonl")):
        result = diagnose(path)
        figure = pictures.recorded(result)
        figure.canvas.draw()
        shown = " ".join(text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text")))
        assert "learning rate" in shown or "step" in shown
        assert pictures.describe_recorded(result).endswith(".")
        for finding in symptoms.recorded_findings(result):
            assert finding.id in FINDINGS
            json.dumps(finding.to_dict(), allow_nan=False)


def test_after_backward_the_rest_is_still_recorded(tmp_path):
    with pytest.warns(RuntimeWarning):
        result = record(tmp_path, call="after")
    assert result.finding("loss_sign").answer == "undecided"
    assert result.finding("loss_reduction").answer == "no"
    assert result.finding("update_ratio").answer == "no"
    assert any("graph could not be recorded" in note for note in result.history.notes)


SMALL = st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.sampled_from(["", "nan", "x"])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_mangled_recording_is_read_or_refused_but_never_a_crash(recordings, data):
    text = (recordings / "healthy.jsonl").read_text()
    events = [json.loads(line) for line in text.splitlines()]
    for _ in range(data.draw(st.integers(1, 6))):
        event = data.draw(st.sampled_from(events))
        for _ in range(data.draw(st.integers(1, 3))):
            keys = (
                [k for k in event if k not in ("event", "schema")]
                if isinstance(event, dict)
                else range(len(event))
            )
            if not keys:
                break
            key = data.draw(st.sampled_from(list(keys)))
            if data.draw(st.booleans()) or not isinstance(event[key], (dict, list)):
                event[key] = data.draw(
                    SMALL | st.lists(SMALL, max_size=3) | st.dictionaries(st.text(max_size=2), SMALL)
                )
                break
            event = event[key]
    path = recordings / "mangled.txt"
    path.write_text("\n".join(json.dumps(event, separators=(",", ":")) for event in events))
    try:
        result = diagnose(path)
    except UserError as error:
        assert "\n" not in str(error)
        return
    opinions(result)
    assert len(symptoms.recorded_findings(result)) == 14


def test_a_module_of_a_single_layer_is_fine(tmp_path):
    from diag_lib.recorder import TrainingRecorder

    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with TrainingRecorder(tmp_path / "r.jsonl", model, optimizer) as rec:
        rec.step(model(torch.ones(2, 3)).mean())
        rec.epoch(val_auc=0.5)
    assert len(symptoms.recorded_findings(diagnose(tmp_path / "r.jsonl"))) == 14


def test_a_network_that_ends_in_a_sigmoid_is_told_from_raw_logits_that_hardly_leave_their_start(
    tmp_path,
) -> None:
    """Both give outputs between 0 and 1 that the loss takes for logits; autograd knows which were squashed."""
    ends = record(tmp_path, model=Probable(), alpha=0.0, lr=1e-4)
    assert ends.finding("activation").data["formula"] == "sigmoid"
    assert "wrong_activation" in suspected(ends)
    raw = record(tmp_path, model=start_in_range(network()), alpha=0.0, lr=1e-6)
    found, causes = raw.finding("activation"), suspected(raw)
    assert found.answer == "no" and "wrong_activation" not in causes and "lr_too_low" in causes


def test_what_made_a_tensor_is_read_from_its_graph() -> None:
    z = torch.randn(4, 1, 3, 3, requires_grad=True) * torch.ones(1)
    gate = torch.randn(4, 1, 3, 3, requires_grad=True)
    convolved = F.conv2d(z, torch.ones(1, 1, 1, 1, requires_grad=True))
    assert made_by(torch.sigmoid(z).mean((1, 2, 3))) == "sigmoid"
    assert made_by(torch.cat([torch.sigmoid(z[:2]), torch.sigmoid(z[2:])]).flatten(1).mean(1)) == "sigmoid"
    assert made_by(z.flatten(1).softmax(1)[:, :2]) == "softmax"
    assert made_by((convolved * torch.sigmoid(gate)).mean((1, 2, 3))) == "none"
    assert made_by(convolved.squeeze(1)) == "none"
    assert made_by(torch.logit(torch.sigmoid(z))) == ""
    assert made_by(torch.sigmoid(z).detach()) == ""


def test_recorded_probabilities_without_a_graph_are_known_by_filling_their_range(tmp_path) -> None:
    def detached(arguments):
        return {**arguments, "logits": arguments["logits"].detach()}

    raw = record(tmp_path, model=start_in_range(network()), alpha=0.0, lr=1e-6, step_arguments=detached)
    found = raw.finding("activation")
    assert found.answer == "undecided" and "wrong_activation" not in suspected(raw)
    ends = record(tmp_path, model=Probable(sharpness=40), alpha=0.0, lr=1e-4, step_arguments=detached)
    assert ends.finding("activation").answer == "yes"
