"""The rule file: the first rule that matches, and a clear word on what is wrong with a file."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.tiny import DISK, STACK
from iopfl.base.errors import ConfigError
from iopfl.core.criteria import Criteria
from iopfl.dimse.peers import Peer
from iopfl.dimse.rules import Facts, Stow, read_rules

WHOLE = """
rules:
  - name: fundus
    match: {modality: OP, description: "*color*", calling: "RETINA*"}
    answer: vessel_routed
    send_to: [pacs, web]
  - match: {modality: mr, body_part: PROSTATE, description: "/^t2.*(tra|ax)/", min_slices: 12, called: IOPFL}
    answer: prostate
    send_to: pacs
destinations:
  pacs: {ae_title: ORTHANC, host: 127.0.0.1, port: 4242}
  web: {stow: "https://pacs/dicom-web", user: iopfl, password_env: IOPFL_PASSWORD}
"""


@pytest.fixture(autouse=True)
def _password(monkeypatch):
    monkeypatch.setenv("IOPFL_PASSWORD", "hidden")


@pytest.fixture
def read(tmp_path):
    def read_text(text: str):
        (tmp_path / "rules.yaml").write_text(text)
        return read_rules(tmp_path / "rules.yaml")

    return read_text


def test_a_whole_file_is_read(read):
    rules = read(WHOLE)
    assert [(rule.name, rule.answer, rule.send_to) for rule in rules.rules] == [
        ("fundus", "vessel_routed", ("pacs", "web")),
        ("2", "prostate", ("pacs",)),
    ]
    assert rules.destinations["pacs"] == Peer("ORTHANC", "127.0.0.1", 4242) == rules.find_peer("ORTHANC")
    assert rules.destinations["web"] == Stow("https://pacs/dicom-web", "iopfl", "IOPFL_PASSWORD")
    assert rules.find_peer("web") is None
    assert "hidden" not in repr(rules)


def test_where_experts_disagree_is_asked_of_banks_of_several_models_alone(read):
    rules = read(WHOLE.replace("answer: vessel_routed", "answer: vessel_routed\n    results: [seg, disagreement]"))
    assert rules.rules[0].results == ("seg", "disagreement")
    rules.check_experts({"vessel": 2, "prostate": 1}.get)
    with pytest.raises(ConfigError, match=r"rule fundus: .* takes a bank of several models, this has one"):
        rules.check_experts({"vessel": 1, "prostate": 1}.get)


MR = {"modality": "MR", "body_part": "PROSTATE", "description": "T2 tse TRA", "called": "IOPFL", "slices": 20}


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"modality": "OP", "description": "left Color 45", "calling": "RETINA2"}, "fundus"),
        ({"modality": "OP", "description": "left Color 45", "calling": "SCANNER"}, None),
        ({"modality": "OP", "description": "left red-free", "calling": "RETINA2"}, None),
        (MR, "2"),
        ({**MR, "description": "pre t2 ax"}, None),
        ({**MR, "slices": 11}, None),
        ({**MR, "slices": 12}, "2"),
        ({**MR, "body_part": ""}, None),
        ({**MR, "called": "OTHER"}, None),
        ({**MR, "modality": "MRS"}, None),
    ],
)
def test_the_first_rule_that_matches_answers(read, facts, name):
    rule, reasons = read(WHOLE).find(Facts(**facts))
    assert (rule.name if rule else None) == name
    assert len(reasons) == {"fundus": 0, "2": 1, None: 2}[name]


def test_why_a_rule_does_not_match_is_said_without_what_people_write(read):
    facts = Facts(modality="CT", description="Müller color", calling="RETINA1", slices=3)
    _, reasons = read(WHOLE).find(facts)
    assert reasons == ["fundus: modality CT is not 'OP'", "2: modality CT is not 'mr'"]
    facts = Facts(modality="OP", description="Müller", calling="RETINA1")
    assert read(WHOLE).find(facts)[1][0] == "fundus: description is not '*color*'"
    # A broken length may bring the patient's name into any element.
    facts = Facts(modality="MRDoe^Jane")
    assert read(WHOLE).find(facts)[1][1] == "2: modality an invalid value is not 'mr'"
    _, reasons = read(WHOLE).find(Facts(**{**MR, "slices": 3}))
    assert reasons[1] == "2: 3 slices, at least 12 expected"


VESSEL = replace(DISK, name="vessel", modality="OP", channels=3)
PROSTATE = replace(
    STACK,
    name="prostate",
    images=Criteria(body_parts=("*PROSTAT*",), orientations=("axial",), min_slices=8, max_slices=40),
)


def test_answers_are_checked_against_those_there_are(read):
    rules = read(WHOLE)
    rules.for_tasks([VESSEL, PROSTATE])
    with pytest.raises(ConfigError, match="rule 2: no answer 'prostate': the banks given answer vessel, vessel_routed"):
        rules.for_tasks([VESSEL])


ALL = '{modality: mr, body_part: PROSTATE, description: "/^t2.*(tra|ax)/", min_slices: 12, called: IOPFL}'


@pytest.mark.parametrize(
    ("facts", "named", "words"),
    [
        ({"modality": "CT"}, {"modality": "ct"}, "modality CT is not 'MR'"),
        ({"body_part": "ABDOMEN"}, {"body_part": '"*"'}, "body part ABDOMEN is none of *PROSTAT*"),
        ({"orientation": "coronal"}, {"orientation": "coronal"}, "its slices are coronal, axial ones are expected"),
        ({"slices": 7}, {"min_slices": 5}, "it has 7 slices, at least 8 expected"),
        ({"slices": 41}, {"max_slices": 99}, "it has 41 slices, at most 40 expected"),
    ],
)
def test_a_rule_takes_the_criteria_of_its_task_but_for_those_that_it_names(read, facts, named, words):
    series = Facts(**{**MR, "orientation": "axial", **facts})
    bare = read(WHOLE.replace(ALL, "{}")).for_tasks([VESSEL, PROSTATE])
    assert bare.find(Facts(**MR))[0].answer == "prostate"
    rule, reasons = bare.find(series)
    assert (
        rule is None and reasons[1] == f"2: {words} (asked by task prostate: name it in match to send it nonetheless)"
    )
    text = ", ".join(f"{key}: {value}" for key, value in named.items())
    own = read(WHOLE.replace(ALL, f"{{{text}}}")).for_tasks([VESSEL, PROSTATE])
    assert own.find(series)[0].answer == "prostate"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("match: {modality: OP", "match: {modalty: OP", "rule 1, match: unknown key modalty; there are modality, body"),
        ("answer: prostate", "anser: prostate", "rule 2: unknown key anser"),
        ("    answer: prostate\n", "", "rule 2: answer is missing"),
        ("    send_to: pacs\n", "", "rule 2: send_to is missing"),
        ("send_to: pacs", "send_to: pax", "rule 2: send_to: no destination 'pax'; there are pacs, web"),
        ("send_to: pacs", "send_to: {}", "rule 2: send_to: expected names"),
        ("/^t2.*(tra|ax)/", "/(/", "rule 2: description: no regular expression"),
        ("min_slices: 12", "min_slices: -1", "rule 2: min_slices: expected a number from 1"),
        ("min_slices: 12", "min_slices: many", "rule 2: min_slices: expected a number from 1"),
        ("  - match", "  - name: fundus\n    match", "several have the name fundus"),
        ("name: fundus", "name: ../x", "rule 1: expected a name of letters"),
        ("port: 4242", "port: 99999", "destination pacs: ORTHANC: expected a host and a port from 1"),
        ("port: 4242", "port: here", "destination pacs: port: expected a number"),
        ("ae_title: ORTHANC", "ae_title: AN_AE_TITLE_TOO_LONG", "expected an AE title of 1 to 16 characters"),
        ("port: 4242", "port: 4242, tls: {ca: no.pem}", "destination pacs: TLS: expected PEM files, there is no"),
        ("port: 4242", "port: 4242, tls: {}", "destination pacs: tls: ca is missing"),
        ("https://pacs", "ftp://pacs", "destination web: stow: expected http"),
        ("https://pacs", "https://me:hidden@pacs", "without a password in it"),
        ("password_env: IOPFL_PASSWORD", "password: secret", "destination web: unknown key password; there are stow"),
        ("IOPFL_PASSWORD", "IOPFL_NO_PASSWORD", "environment variable IOPFL_NO_PASSWORD, which is not set"),
        (", password_env: IOPFL_PASSWORD", "", "expected user and password_env"),
        (
            "send_to: pacs",
            "send_to: pacs\n    results: [seg, pdf]",
            "rule 2: results: expected results among seg, label_map",
        ),
        ("send_to: pacs", "send_to: pacs\n    results: report", "rule 2: results: expected one of seg or label_map"),
        ("send_to: pacs", "send_to: pacs\n    results: 3", "rule 2: results"),
        ("rules:", "rulez:", "the file: unknown key rulez"),
        ("rules:", "rules: 3\nx:", "unknown key x"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(read, old, new, words):
    assert old in WHOLE
    with pytest.raises(ConfigError, match="rules") as error:
        read(WHOLE.replace(old, new, 1))
    assert words in str(error.value)
    assert "hidden" not in str(error.value)


@pytest.mark.parametrize(("text", "words"), [("", "key: value"), ("[1]", "key: value"), ("a: [", "no valid YAML")])
def test_what_is_no_rule_file_is_refused(read, text, words):
    with pytest.raises(ConfigError, match=words):
        read(text)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_rules(tmp_path / "rules.yaml")
