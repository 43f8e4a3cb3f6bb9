"""Moments as they are written, and how far a training has come towards them."""

import pytest

from accelerando.algorithms.progress import Moment, Progress, moment


@pytest.mark.parametrize(
    "text, expected",
    [
        ("8ep", Moment(8, "ep")),
        ("0ba", Moment(0, "ba")),
        (" 500 ba ", Moment(500, "ba")),
        ("1e3sp", Moment(1000, "sp")),
        ("2.0ep", Moment(2, "ep")),
        ("70tok", Moment(70, "tok")),
        ("0.5dur", Moment(0.5, "dur")),
        ("1dur", Moment(1.0, "dur")),
        ("0dur", Moment(0.0, "dur")),
        (Moment(3, "ba"), Moment(3, "ba")),
    ],
)
def test_moments_are_read_as_they_are_written(text, expected):
    found = moment(text)
    assert found == expected and moment(str(found)) == expected
    assert type(found.value) is (float if found.unit == "dur" else int)


@pytest.mark.parametrize(
    "text",
    [
        *("", "ep", "8", "soon", "1.5ep", "-1ba", "2dur", "-0.1dur", "3sec", "3iter", "2eep", "eep", "nandur", "infba"),
        *("1e999ba", "1e999dur", "3 BA", "3ba 4ba", "0x3ba", "1_0ba", "--1ba", "1ba\n2ba"),
        *(None, 3, 0.5, ["1ep"], b"1ep"),
    ],
)
def test_what_is_no_moment(text):
    assert moment(text) is None


LENGTHS = {  # of 8 batches of 10 samples and 50 tokens in 2 epochs
    "ep": Moment(2, "ep"),
    "ba": Moment(8, "ba"),
    "sp": Moment(80, "sp"),
    "tok": Moment(400, "tok"),
}


def after(batch, length=None, batches_per_epoch=4):
    epoch, within = divmod(batch, 4)
    whole = {"batch": batch, "epoch": epoch, "sample": 10 * batch, "token": 50 * batch}
    return Progress(**whole, batch_in_epoch=within, batches_per_epoch=batches_per_epoch, length=length)


@pytest.mark.parametrize("length", LENGTHS)
def test_how_much_is_over(length):
    for batch in range(9):
        now = after(batch, LENGTHS[length])
        assert now.elapsed("ba") == batch and now.elapsed("sp") == 10 * batch and now.elapsed("tok") == 50 * batch
        assert now.elapsed("ep") == batch / 4 and now.elapsed("dur") == batch / 8


def test_parts_of_epochs_need_the_number_of_their_batches():
    assert [after(batch, batches_per_epoch=None).elapsed("ep") for batch in range(9)] == [0] * 4 + [1] * 4 + [2]
    unknown = after(6, LENGTHS["ep"], batches_per_epoch=None)
    assert unknown.elapsed("dur") == 0.5
    assert unknown.in_batches(Moment(1, "ep")) is None and unknown.in_batches(Moment(1.0, "dur")) is None
    assert unknown.share(Moment(4, "ba")) is None and unknown.share(Moment(1, "ep")) == 0.5


def test_a_share_of_a_length_that_nobody_knows_is_refused():
    for ask in (Progress.elapsed, lambda now, unit: now.reached(Moment(0.5, unit))):
        with pytest.raises(ValueError, match="a share of the training has no meaning where its length is not known"):
            ask(after(3), "dur")
    assert after(3).share(Moment(0.5, "dur")) == 0.5 and after(3).share(Moment(3, "ba")) is None
    assert after(3).in_batches(Moment(0.5, "dur")) is None


def test_a_moment_comes_with_its_batch_and_is_over_with_the_next():
    for steps in range(1, 41):
        for batch in range(steps + 1):
            times = [Moment(batch, "ba"), Moment(batch / steps, "dur")]
            for time in times:
                before, now, later = (Progress.after(k, steps) for k in (batch - 1, batch, batch + 1))
                assert now.reached(time) and later.reached(time) and not before.reached(time)
                assert later.passed(time) and not now.passed(time) and not before.passed(time)
    assert after(4).reached(Moment(1, "ep")) and not after(3).reached(Moment(1, "ep"))
    assert after(4).reached(Moment(31, "sp")) and not after(3).reached(Moment(31, "sp"))
    assert after(4).reached(Moment(151, "tok")) and not after(3).reached(Moment(151, "tok"))


@pytest.mark.parametrize("length", ["ep", "ba"])
def test_moments_in_batches_and_as_shares(length):
    now = after(3, LENGTHS[length])
    for time, batches in ((Moment(1, "ep"), 4), (Moment(3, "ba"), 3), (Moment(0.75, "dur"), 6), (Moment(3, "ep"), 12)):
        assert now.in_batches(time) == batches and now.share(time) == batches / 8
    for time in (Moment(40, "sp"), Moment(200, "tok")):
        assert now.in_batches(time) is None and now.share(time) is None


@pytest.mark.parametrize("length", ["sp", "tok"])
def test_shares_of_a_length_in_samples_or_tokens(length):
    now, whole = after(3, LENGTHS[length]), LENGTHS[length].value
    assert now.share(Moment(whole // 4, length)) == 0.25 and now.share(Moment(2 * whole, length)) == 2
    assert now.share(Moment(0.5, "dur")) == 0.5 and now.share(Moment(1, "ep")) is None
    assert now.in_batches(Moment(0.5, "dur")) is None and now.in_batches(Moment(2, "ep")) == 8


def test_counts_of_a_number_of_updates():
    found = Progress.after(6, steps=8, batches_per_epoch=4)
    assert found.counts == after(6).counts | {"sample": 0, "token": 0}
    assert found.length == Moment(8, "ba") and found.elapsed("dur") == 0.75
    assert Progress.after(6).counts == dict.fromkeys(found.counts, 0) | {"batch": 6, "batch_in_epoch": 6}
