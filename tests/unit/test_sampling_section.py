"""`data.sampling`: a wrong setting is one clear message."""

import pytest
from pydantic import ValidationError
from tests.unit.sampling_cases import NAN, sampling

from weighted_mtp.core.config.sampling import SamplingConfig

NUMBER = {"difficulty_number": {"below": 3}}
INVALID = [
    ({"strategy": "difficulty", "weights": {"easy": 1}}, r"weights: no bin 'easy'; there are low"),
    ({"strategy": "difficulty", "weights": {"low": 0}}, r"data\.sampling\.weights: every weight"),
    ({"strategy": "difficulty", "weights": {}}, r"every weight is 0"),
    ({"strategy": "difficulty", "weights": {"low": -1}}, r"greater than or equal to 0"),
    ({"strategy": "difficulty", "weights": {"low": NAN}}, r"finite"),
    ({"strategy": "difficulty", "bins": {}}, r"data\.sampling\.bins is empty"),
    ({"strategy": "difficulty", "bins": {"a": {}}}, r"bins\.a: give exactly one of .* none"),
    ({"strategy": "difficulty", "bins": {"a": {"labels": []}}}, r"bins\.a\.labels is empty"),
    ({"strategy": "difficulty", "bins": {"a": {"labels": [True]}}}, r"valid string"),
    ({"strategy": "difficulty", "bins": {"other": NUMBER}}, r"bins\.other: this name"),
    (
        {"strategy": "difficulty", "bins": {"a": {**NUMBER, "labels": ["x"]}}},
        r"bins\.a: give exactly one of .* it has labels and difficulty_number",
    ),
    (
        {"strategy": "difficulty", "bins": {"a": {"cf_rating": {"at_least": 4, "below": 4}}}},
        r"bins\.a\.cf_rating: at_least \(4\.0\) must be under below \(4\.0\)",
    ),
    (
        {"strategy": "difficulty", "bins": {"a": {"labels": ["x"]}, "b": {"labels": ["x"]}}},
        r"bins a and b overlap: both hold the label 'x'",
    ),
    (
        {
            "strategy": "difficulty",
            "bins": {"a": NUMBER, "b": {"difficulty_number": {"at_least": 2}}},
        },
        r"bins a and b overlap: both hold difficulty_number from 2 to below 3",
    ),
    ({"strategy": "curriculum", "bins": {"a": NUMBER}}, r"data\.sampling\.stages is missing"),
    ({"strategy": "curriculum", "stages": []}, r"stages: .* they are none"),
    (
        {"strategy": "curriculum", "stages": [{"until": 0.9, "weights": {"low": 1}}]},
        r"the last must be 1\.0, they are 0\.9",
    ),
    (
        {
            "strategy": "curriculum",
            "stages": [{"until": until, "weights": {"low": 1}} for until in (0.5, 0.5, 1)],
        },
        r"must be above the one before .* 0\.5, 0\.5, 1",
    ),
    (
        {"strategy": "curriculum", "stages": [{"until": 1, "weights": {"top": 1}}]},
        r"data\.sampling\.stages\.0\.weights: no bin 'top'",
    ),
    ({"strategy": "balanced", "correct_fraction": 1.0}, r"less than 1"),
    ({"strategy": "balanced", "correct_fraction": 0}, r"greater than 0"),
    ({"n_samples": 0}, r"greater than 0"),
    ({"weights": {"low": 1}}, r"weights has no effect with data\.sampling\.strategy uniform"),
    ({"strategy": "balanced", "bins": {"a": NUMBER}}, r"bins has no effect"),
    ({"strategy": "curriculum", "weights": {"low": 1}}, r"set the strategy to difficulty"),
    ({"strategy": "random"}, r"'uniform', 'balanced'"),
]


@pytest.mark.parametrize(("settings_", "message"), INVALID)
def test_a_wrong_setting_is_one_message(settings_, message):
    with pytest.raises(ValidationError, match=message) as caught:
        sampling(**settings_)
    assert len(caught.value.errors()) == 1


def test_a_valid_section_survives_being_saved():
    bins = {"a": {"labels": ["x", 3]}, "b": {"cf_rating": {"below": 3}}}
    stages = [{"until": 0.5, "weights": {"a": 1}}, {"until": 1, "weights": {"other": 2}}]
    for config in (
        sampling(),
        sampling(strategy="curriculum", bins=bins, stages=stages),
        sampling(strategy="difficulty", bins=bins, weights={"b": 0.5}, n_samples=3),
    ):
        assert SamplingConfig.model_validate(config.model_dump(mode="json")) == config
