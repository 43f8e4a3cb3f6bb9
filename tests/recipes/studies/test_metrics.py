"""Which metric a study reports."""

import pytest

from accelerando.recipes.studies.metrics import choose_metric

ACCURACY = "metrics/eval/MulticlassAccuracy"


def test_the_metric_is_the_first_accuracy_or_the_wanted_one():
    metrics = ["metrics/AccuracySet/CrossEntropy", "metrics/eval/F1", ACCURACY, "metrics/eval/BinaryAccuracy"]
    assert choose_metric(metrics) == choose_metric(iter(metrics)) == ACCURACY
    assert choose_metric(metrics, "binaryaccuracy") == "metrics/eval/BinaryAccuracy"
    assert choose_metric(metrics, "Metrics/Eval/F1") == "metrics/eval/F1"
    with pytest.raises(ValueError, match=r"'Accuracy'.*metrics/eval/F1"):
        choose_metric(metrics, "Accuracy")
    with pytest.raises(ValueError, match=r"accuracy.*metrics/eval/F1"):
        choose_metric(metrics[:2])


@pytest.mark.parametrize("name", ["CrossEntropy", "LanguagePerplexity", "MeanSquaredError", "loss"])
def test_a_metric_of_which_less_is_better_is_refused(name):
    with pytest.raises(ValueError, match=f"lower is better for metrics/eval/{name}; choose a metric of which more is"):
        choose_metric([ACCURACY, f"metrics/eval/{name}"], name.lower())
