import datetime as dt
from pathlib import Path

import pytest
from factories import SPEC_TEXT, minimal_spec

from auditspec.errors import SpecError, UsageError
from auditspec.spec.models import Spec
from auditspec.spec.source import load, parse
from auditspec.spec.tree import MAX_BYTES, MAX_DEPTH, MAX_VALUES, read

FILE = Path("audit.yaml")
Found = tuple[str, int, int]


def problems(text: str | bytes) -> list[str]:
    """The problems of a spec as they are printed."""
    data = text.encode() if isinstance(text, str) else text
    with pytest.raises(SpecError) as caught:
        parse(data, FILE)
    return [str(problem) for problem in caught.value.problems]


def places(text: str | bytes) -> list[Found]:
    data = text.encode() if isinstance(text, str) else text
    with pytest.raises(SpecError) as caught:
        parse(data, FILE)
    return [(problem.code, problem.line, problem.column) for problem in caught.value.problems]


def changed(old: str, new: str, text: str = SPEC_TEXT) -> str:
    """The minimal spec with one thing changed, at its first occurrence."""
    assert old in text
    return text.replace(old, new, 1)


def test_a_valid_spec_loads() -> None:
    loaded = parse(SPEC_TEXT.encode(), FILE)
    assert loaded.spec.stages[1].optimizer.betas == (0.9, 0.999)
    assert loaded.spec.stages[1].optimizer.lr == 0.001
    assert loaded.spec.system.version == "1.0"
    assert loaded.spec == Spec.model_validate(minimal_spec())
    assert loaded.text == SPEC_TEXT.encode()


def test_places() -> None:
    loaded = parse(SPEC_TEXT.encode(), FILE)
    assert loaded.place(("artifacts", "holdout", "label")) == (12, 12)
    assert loaded.place(("artifacts", "holdout", "label"), key=True) == (12, 5)
    assert loaded.place(("stages", 1, "data", 0)) == (31, 9)
    assert loaded.place(("artifacts", "code", "digest")) == (6, 9)
    assert loaded.place(("policy", "suppress", 3)) == (1, 1)


def test_dates_are_read_and_byte_order_marks_and_other_line_ends_are_accepted() -> None:
    text = changed("title: A demonstration", "title: A, expires: 2027-11-30")
    text = "\ufeff" + text.replace("\n", "\r\n")
    assert parse(text.encode(), FILE).spec.audit.expires == dt.date(2027, 11, 30)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        # the shape of the spec
        (
            "lr: 0.1\n",
            "learning_rte: 0.1\n      lr: 0.1\n",
            "26:7: error[AS012] unknown key 'learning_rte'; keys here: name, lr, schedule, state, "
            "momentum, dampening, nesterov, weight_decay, maximize, betas, eps, amsgrad, options, groups",
        ),
        (
            "lr: 0.1\n",
            "lr: 0.1\n      wieght_decay: 1\n",
            "27:7: error[AS012] unknown key 'wieght_decay'; did you mean 'weight_decay'?",
        ),
        (
            "positive: 8, ",
            "positve: 8, positive: 8, ",
            "37:34: error[AS012] unknown key 'positve'; did you mean 'positive'?",
        ),
        (
            "{path: src}",
            "{path: src, dijest: x}",
            "6:21: error[AS012] unknown key 'dijest'; did you mean 'digest'?",
        ),
        (
            "    owner: Foundation team\n",
            "",
            "19:5: error[AS013] missing key 'owner' in stages[0]",
        ),
        (
            "{name: logit-margin, p",
            "{p",
            "37:13: error[AS013] missing key 'name' in behaviors[0].metric",
        ),
        (
            "[0.9, 0.999]",
            "[0.9]",
            "33:47: error[AS013] stages[1].optimizer.betas needs at least 2 values",
        ),
        # wrong types
        (
            '"1.0"',
            "1.10",
            "4:33: error[AS014] system.version: expected text, found the number 1.10; "
            'quote it: "1.10"',
        ),
        ("A. Auditor", "", "3:16: error[AS014] auditor.name: expected text, found nothing"),
        ("Team", "true", "4:47: error[AS014] system.owner: expected text, found true; "
         'quote it: "true"'),
        (
            "lr: 0.1\n",
            'lr: "0.1"\n',
            "26:11: error[AS014] stages[0].optimizer.lr: expected a number, found '0.1'; "
            "remove the quotes",
        ),
        (
            "lr: 0.1\n",
            "lr: true\n",
            "26:11: error[AS014] stages[0].optimizer.lr: expected a number, found true",
        ),
        (
            "positive: 8",
            "positive: true",
            "37:44: error[AS014] behaviors[0].metric.positive: expected a whole number, found true",
        ),
        (
            "positive: 8",
            "positive: 8.0",
            "37:44: error[AS014] behaviors[0].metric.positive: expected a whole number, "
            "found the number 8.0",
        ),
        (
            "data: [train]",
            "data: train",
            "22:11: error[AS014] stages[0].data: expected a list, found 'train'; "
            "write a list: [train]",
        ),
        (
            "{path: src}",
            "src",
            "6:9: error[AS014] artifacts.code: expected a mapping, found 'src'",
        ),
        (
            "title: A demonstration",
            "title: A, expires: 20271130",
            "2:40: error[AS014] audit.expires: expected a date like 2027-11-30, "
            "found the number 20271130",
        ),
        # wrong values
        (
            "lr: 0.1\n",
            "lr: -0.1\n",
            "26:11: error[AS015] stages[0].optimizer.lr: expected a number > 0, "
            "found the number -0.1",
        ),
        (
            "0.999",
            "1",
            "33:53: error[AS015] stages[1].optimizer.betas[1]: expected a number < 1, "
            "found the number 1",
        ),
        (
            "direction: increase",
            "direction: incraese",
            "40:26: error[AS015] behaviors[0].concern.direction: expected 'increase' or "
            "'decrease', found 'incraese'; did you mean 'increase'?",
        ),
        (
            "name: logit-margin",
            "name: logitmargin",
            "37:20: error[AS015] behaviors[0].metric.name: expected one of 'nll', 'accuracy', "
            "'probability', 'logit-margin', 'rate', 'error', 'sequence-nll', 'completion-logprob', 'preference-margin', 'choice', 'generation', 'exposure', 'custom', 'external', found 'logitmargin'; "
            "did you mean 'logit-margin'?",
        ),
        (
            "demo-1",
            "Demo 1",
            "2:13: error[AS015] audit.id: expected an id of up to 64 lower-case letters, digits, "
            "'.', '_', '-', found 'Demo 1'",
        ),
        (
            "  train: {",
            "  train set: {path: x}\n  train: {",
            "9:3: error[AS015] artifacts.train set: expected as key a name of up to 64 letters, "
            "digits, '.', '_', '-'",
        ),
        (
            "train:predict",
            "predict",
            "16:12: error[AS015] model.predict: expected module:callable, found 'predict'",
        ),
        (
            "title: A demonstration",
            "title: A, expires: 2027-02-30",
            "2:40: error[AS015] audit.expires: expected a date like 2027-11-30, "
            "found '2027-02-30'",
        ),
        ("data: [train]", "data: []", "22:11: error[AS015] stages[0].data: expected at least 1 "
         "values, found a list of 0"),
        (
            "{path: src}",
            "{path: ../src}",
            "6:16: error[AS026] artifacts.code.path: an artifact lies in the spec's folder or "
            "below it",
        ),
        # versions
        ('auditspec: "1"', "auditspec: 1", "1:12: error[AS015] auditspec: expected '1', found the "
         'number 1; quote it: "1"'),
        (
            'auditspec: "1"',
            'auditspec: "7"',
            "1:12: error[AS016] unknown spec version '7'; known versions: 1",
        ),
        # rules that span parts
        (
            "checkpoint: final",
            "checkpoint: finl",
            "17:15: error[AS021] no artifact is named 'finl'; did you mean 'final'?",
        ),
        (
            "      - train\n",
            "      - trian\n",
            "31:9: error[AS021] no artifact is named 'trian'; did you mean 'train'?",
        ),
        (
            "id: finetune",
            "id: pretrain",
            "27:9: error[AS023] id 'pretrain' stands already at stages[0]; give each its own id",
        ),
        (
            "  code: {path: src}\n",
            "",
            "6:3: error[AS020] artifact 'code' is missing; add artifacts.code with its path",
        ),
        (
            "negative: 3",
            "negative: 8",
            "37:13: error[AS022] behaviors[0].metric: positive and negative name the same class",
        ),
        # where: the place is that of the character
        (
            "digit == 3 and source != \"synthetic\"",
            "digit == 3 and @os.system('x')",
            "39:27: error[AS030] behaviors[0].where: '@' is not allowed; allowed are columns, "
            "numbers, quoted text, true, false, == != < <= > >=, in [..], not in [..], and, or, "
            "not, and parentheses",
        ),
        (
            "digit == 3 and source != \"synthetic\"",
            "'source.str.len() > 3'",
            "39:19: error[AS030] behaviors[0].where: attributes are not allowed, and a number "
            "starts with a digit; allowed are columns, numbers, quoted text, true, false, "
            "== != < <= > >=, in [..], not in [..], and, or, not, and parentheses",
        ),
        (
            "digit == 3 and source != \"synthetic\"",
            "eval(digit) == 3",
            "39:16: error[AS030] behaviors[0].where: calls are not allowed; allowed are columns, "
            "numbers, quoted text, true, false, == != < <= > >=, in [..], not in [..], and, or, "
            "not, and parentheses",
        ),
        # YAML
        (
            "    owner: Product team\n",
            "\towner: Product team\n",
            "28:1: error[AS003] a tab cannot indent; indent with spaces",
        ),
        (
            "digit == 3 and",
            "`digit` == 3 and",
            "39:12: error[AS003] not YAML: found character '`' that cannot start any token; "
            "quote the text",
        ),
        (
            "from scratch",
            "from: scratch",
            "21:22: error[AS003] not YAML: mapping values are not allowed here; "
            "quote a text that holds ': '",
        ),
        (
            "lr: 0.1\n",
            "lr: 0.1\n      lr: 0.2\n",
            "27:7: error[AS005] key 'lr' stands already in line 26; keep one of them",
        ),
        (
            "owner: Product team",
            "owner: *team",
            "28:12: error[AS006] alias '*team'; write the value out",
        ),
        ("Foundation team", "&team Foundation team", "20:12: error[AS006] anchor '&team'; "
         "remove it"),
        (
            "from scratch",
            "!!python/name:os.system x",
            "21:18: error[AS007] tag 'tag:yaml.org,2002:python/name:os.system'; remove "
            "it; quote a text",
        ),
        (
            "      name: SGD\n",
            "      name: SGD\n      <<: {}\n",
            "26:7: error[AS008] merge key '<<'; write the keys out",
        ),
        ("lr: 0.1\n", "lr: .nan\n", "26:11: error[AS011] .nan is not a finite number; quote it if "
         'it is text: ".nan"'),
        ("lr: 0.1\n", "lr: -.Inf\n", "26:11: error[AS011] -.Inf is not a finite number; quote it "
         'if it is text: "-.Inf"'),
        ("lr: 0.1\n", "lr: 1e999\n", "26:11: error[AS011] 1e999 is out of range; quote it if it is "
         'text: "1e999"'),
        (
            "positive: 8",
            "positive: 08",
            '37:44: error[AS011] 08 has a leading zero; quote it if it is text: "08"',
        ),
        ("A. Auditor", "A.\u202e Auditor", "3:19: error[AS004] hidden character U+202E "
         "RIGHT-TO-LEFT OVERRIDE; remove it"),
        ("A. Auditor", '"A.\\u202e Auditor"', "3:17: error[AS004] hidden character U+202E "
         "RIGHT-TO-LEFT OVERRIDE; remove it"),
        ("A. Auditor", '"A\\e[31m"', "3:17: error[AS004] hidden character U+001B; remove it"),
    ],
)  # fmt: skip
def test_one_broken_thing_gives_one_problem_at_its_place(old: str, new: str, problem: str) -> None:
    assert problems(changed(old, new)) == [f"audit.yaml:{problem}"]


def test_problems_of_a_whole_document() -> None:
    assert problems("") == ["audit.yaml:1:1: error[AS014] the document: expected a mapping, "
                            "found nothing"]  # fmt: skip
    assert places("- 1\n") == [("AS014", 1, 1)]
    assert places(SPEC_TEXT + "---\na: 1\n") == [("AS009", 41, 1)]
    assert places("%YAML 1.1\n---\n" + SPEC_TEXT) == [("AS007", 1, 1)]
    assert places(SPEC_TEXT.encode() + b"# \xe9\n") == [("AS001", 41, 3)]
    assert places(b"#" * (MAX_BYTES + 1)) == [("AS002", 1, 1)]
    assert places("a: " + "[" * (MAX_DEPTH + 5)) == [("AS010", 1, MAX_DEPTH + 3)]
    assert places("- 1\n" * (MAX_VALUES + 1)) == [("AS002", MAX_VALUES, 3)]
    assert places('a: "\\U99999999"\n') == [("AS003", 1, 7)]


def test_keys_must_be_short_text() -> None:
    text = SPEC_TEXT + "7: x\n? [a]\n: x\nnull: x\n? " + "k" * 300 + "\n: x\n"
    assert places(text) == [
        ("AS017", 41, 1),
        ("AS017", 42, 3),
        ("AS017", 44, 1),
        ("AS017", 45, 3),
    ]


def test_an_alias_bomb_is_refused_without_being_expanded() -> None:
    levels = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 25)]
    found = places("\n".join(levels))
    assert found.count(("AS006", 25, 6)) == 1
    assert sum(code == "AS006" for code, _, _ in found) == 25 + 2 * 24


def test_five_kinds_of_errors_show_together_at_their_places() -> None:
    text = SPEC_TEXT
    for old, new in [
        ('"1.0"', "1.10"),
        ("{path: src}", "{path: src, path: lib}"),
        ("data: [train]", "data: [trian]"),
        ("lr: 0.1\n", "lr: -0.1\n      momentun: 0.9\n"),
        ("id: finetune", "id: pretrain"),
        ("digit == 3 and", "digit = 3 and"),
        ("tolerance: 0.1", "tolerance: &t 0.1"),
    ]:
        text = changed(old, new, text)
    assert places(text) == [
        ("AS014", 4, 33),
        ("AS005", 6, 21),
        ("AS021", 22, 12),
        ("AS015", 26, 11),
        ("AS012", 27, 7),
        ("AS023", 28, 9),
        ("AS030", 40, 18),
        ("AS006", 41, 47),
    ]


def test_a_union_gives_one_problem() -> None:
    text = SPEC_TEXT + "checks: {record-fidelity: {windows: al}}\nestimator: {dtype: float23}\n"
    assert problems(text) == [
        "audit.yaml:41:37: error[AS015] checks.record-fidelity.windows: expected 'auto' or 'all' or a "
        "whole number, found 'al'; did you mean 'all'?",
        "audit.yaml:42:20: error[AS015] estimator.dtype: expected 'float32' or 'float64', found "
        "'float23'; did you mean 'float32'?",
    ]


def test_labels_and_suppressions_must_fit() -> None:
    text = changed("    label: digit\n", "")
    text = changed("{name: logit-margin, positive: 8, negative: 3}", "{name: nll}", text)
    text += (
        "policy:\n  suppress:\n  - {behavior: three, reason: r, owner: o, expires: 2027-01-01}\n"
    )
    assert problems(text) == [
        "audit.yaml:36:13: error[AS024] metric 'nll' needs the true class of each example; "
        "name its column: artifacts.holdout.label",
        "audit.yaml:42:16: error[AS025] no behaviour is named 'three'; "
        "behaviours: three-read-as-eight",
    ]


def test_the_place_inside_a_folded_where_is_that_of_the_text() -> None:
    text = changed(
        'where: digit == 3 and source != "synthetic"', "where: >-\n      a == @", SPEC_TEXT
    )
    assert places(text) == [("AS030", 39, 12)]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load(tmp_path / "audit.yaml")
    with pytest.raises(UsageError, match="is a folder"):
        load(tmp_path)
    (tmp_path / "audit.yaml").write_text(SPEC_TEXT)
    assert load(tmp_path / "audit.yaml").spec.audit.id == "demo-1"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("~", None), ("", None), ("null", None), ("true", True), ("false", False),
        ("0", 0), ("-12", -12), ("+7", 7), ("1.5", 1.5), ("1e-3", 0.001), (".5", 0.5), ("-0.0", -0.0),
        ("yes", "yes"), ("True", "True"), ("0x1F", "0x1F"), ("0o17", "0o17"), ("1_000", "1_000"),
        ("2027-11-30", "2027-11-30"), ("12:30:45", "12:30:45"), ("'1'", "1"), ('"true"', "true"),
        ("1.2.3", "1.2.3"), ("=", "="),
    ],
)  # fmt: skip
def test_scalars(text: str, value: object) -> None:
    root, found = read(f"a: {text}\n".encode(), "f")
    assert not found
    assert root is not None
    assert repr(root.plain()) == repr({"a": value})
