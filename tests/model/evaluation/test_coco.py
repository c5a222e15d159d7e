"""Average precision, against cases that are worked out by hand."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from model.data import load_dataset
from model.evaluation.coco import evaluate
from tests.model.evaluation.samples import dataset, sample

OBJECT = [10, 10, 50, 50]
DIFFICULT = [100, 100, 180, 180]


ONE_OBJECT = dataset(sample("a", [OBJECT, DIFFICULT], [1, 1], [False, True]))


def prediction(*rows, image_id="a"):
    """Make a prediction from rows of (box, score[, class])."""
    return (image_id, [r[0] for r in rows], [r[1] for r in rows], [r[2] if len(r) > 2 else 1 for r in rows])


def test_perfect_detections_score_one():
    both = dataset(sample("a", [OBJECT], [1]), sample(7, [DIFFICULT], [2]))
    result = evaluate([prediction((OBJECT, 0.9)), prediction((DIFFICULT, 0.8, 2), image_id=7)], both)
    assert (result.ap, result.ap50, result.ap75, result.ar100) == (1, 1, 1, 1)
    assert [(row.name, row.boxes, row.ap, row.ap50) for row in result.classes] == [("cat", 1, 1, 1), ("dog", 1, 1, 1)]
    assert [(size.boxes, size.ap) for size in result.sizes[:3]] == [(0, None), (2, 1), (0, None)]


def test_average_precision_by_area():
    squares = [[0, 0, side, side] for side in (10, 20, 60, 120)]  # small, small, medium, large: one a quarter
    four = dataset(*(sample(side[2], [side], [1]) for side in squares))
    result = evaluate([prediction((side, 0.9), image_id=side[2]) for side in squares[1:]], four)
    assert [(size.name, size.boxes, size.ap50) for size in result.sizes] == [
        ("small", 2, pytest.approx(51 / 101)),
        ("medium", 1, 1),
        ("large", 1, 1),
        ("first quarter", 1, 0),
        ("second quarter", 1, 1),
        ("third quarter", 1, 1),
        ("last quarter", 1, 1),
    ]
    assert result.sizes[4].low == result.sizes[3].high == 325  # of 100, 400, 3600 and 14400 square pixels


def test_a_higher_scored_miss_halves_precision():
    assert evaluate([prediction(([0, 100, 40, 140], 0.9), (OBJECT, 0.5))], ONE_OBJECT).ap50 == pytest.approx(0.5)


def test_a_second_detection_of_one_object_is_a_miss():
    two = dataset(sample("a", [OBJECT, DIFFICULT], [1, 1]))
    # hit, duplicate, hit: precision 1 up to recall 1/2, then 2/3; 51 and 50 of the 101 recall points
    result = evaluate([prediction((OBJECT, 0.9), (OBJECT, 0.8), (DIFFICULT, 0.7))], two)
    assert result.ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_iou_thresholds_run_from_50_to_95():
    # IoU 0.8: a hit at .50 .55 .60 .65 .70 .75 .80 (as float32 boxes give 0.8 exactly), a miss at .85 .90 .95
    result = evaluate([prediction(([10, 10, 42, 50], 0.9))], ONE_OBJECT)
    assert result.ap50 == 1
    assert result.ap75 == 1
    assert result.ap == pytest.approx(0.7)


def test_a_detection_on_a_difficult_object_counts_neither_way():
    result = evaluate([prediction((DIFFICULT, 0.9), (OBJECT, 0.5))], ONE_OBJECT)
    assert result.ap == 1
    assert (result.boxes, result.ignored) == (1, 1)


def test_missing_a_difficult_object_costs_nothing():
    assert evaluate([prediction((OBJECT, 0.5))], ONE_OBJECT).ar100 == 1


def test_a_difficult_object_takes_any_number_of_detections():
    rows = ((DIFFICULT, 0.9), (DIFFICULT, 0.8), (DIFFICULT, 0.7), (OBJECT, 0.5))
    assert evaluate([prediction(*rows)], ONE_OBJECT).ap50 == 1


def test_overlap_with_a_difficult_object_is_plain_iou_without_crowd_overlap():
    corner = [100, 100, 120, 120]  # wholly inside, but an IoU of 1/16
    inside = prediction((corner, 0.9), (OBJECT, 0.5))
    assert evaluate([inside], ONE_OBJECT).ap50 == pytest.approx(0.5)
    assert evaluate([inside], ONE_OBJECT, crowd_overlap=True).ap50 == 1


def test_a_detection_on_a_difficult_object_of_another_class_counts_as_wrong():
    result = evaluate(
        [prediction((DIFFICULT, 0.9, 2), (OBJECT, 0.5, 2))],
        dataset(sample("a", [OBJECT, DIFFICULT], [2, 1], [False, True])),
    )
    assert result.ap50 == pytest.approx(0.5)


def test_only_the_hundred_best_of_an_image_count():
    misses = [([0, 150, 20, 170], 0.9)] * 100
    assert evaluate([prediction(*misses, (OBJECT, 0.1))], ONE_OBJECT).ar100 == 0
    result = evaluate([prediction(*misses[1:], (OBJECT, 0.1))], ONE_OBJECT)
    assert result.ar100 == 1
    assert result.detections == 100


def test_the_cut_at_a_hundred_is_of_the_image_and_not_of_each_class():
    misses = [([0, 150, 20, 170], 0.9, 2)] * 100
    assert evaluate([prediction(*misses, (OBJECT, 0.1, 1))], ONE_OBJECT).ar100 == 0


def test_images_without_predictions_count_as_misses_and_none_at_all_is_zero():
    two = dataset(sample("a", [OBJECT], [1]), sample("b", [OBJECT], [1]))
    assert evaluate([prediction((OBJECT, 0.9))], two).ar100 == pytest.approx(0.5)
    result = evaluate([], two)
    assert (result.ap, result.ap50, result.ar100, result.detections) == (0, 0, 0, 0)


def test_classes_without_boxes_are_left_out_of_the_mean():
    result = evaluate([prediction((OBJECT, 0.9))], ONE_OBJECT)
    assert result.ap == 1
    assert result.classes[1].ap is None
    assert result.classes[1].boxes == 0


@pytest.mark.parametrize(
    ("prediction", "complaint"),
    [
        (prediction(image_id="b"), "no image 'b'"),
        (prediction((OBJECT, float("nan"))), "not finite"),
        (prediction(([0, 0, float("inf"), 4], 0.5)), "not finite"),
        (prediction((OBJECT, 0.5, 0)), r"outside 1\.\.2"),
        (prediction((OBJECT, 0.5, 3)), r"outside 1\.\.2"),
        (("a", [OBJECT], [0.5, 0.4], [1]), "1 boxes, 2 scores, 1 classes"),
    ],
)
def test_malformed_predictions_are_refused(prediction, complaint):
    with pytest.raises(ValueError, match=complaint):
        evaluate([prediction], ONE_OBJECT)


def test_an_image_predicted_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        evaluate([prediction((OBJECT, 0.5)), prediction((OBJECT, 0.5))], ONE_OBJECT)


def test_a_data_set_in_which_no_box_counts_cannot_be_evaluated():
    with pytest.raises(ValueError, match="no box that counts"):
        evaluate([], dataset(sample("a", [DIFFICULT], [1], [True])))


def test_results_become_json_and_a_table():
    result = evaluate([prediction((OBJECT, 0.9))], ONE_OBJECT)
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain["ap50"] == 1
    assert plain["classes"][0] == {"name": "cat", "boxes": 1, "ap": 1.0, "ap50": 1.0}
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(result.table())
    text = console.export_text()
    assert "cat" in text
    assert "AR@100 1.000" in text


@pytest.mark.data
def test_the_labels_of_voc20_score_one_against_themselves(voc20):
    test = load_dataset(voc20, "test")
    result = evaluate(
        (
            (s.image_id, s.boxes[~s.ignore], np.ones(int((~s.ignore).sum())), s.class_ids[~s.ignore])
            for s in test.samples
        ),
        test,
    )
    assert result.ap == pytest.approx(1)
    assert result.ar100 == pytest.approx(1)
    assert (result.boxes, result.ignored) == (2549, 678)
