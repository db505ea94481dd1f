"""What the recorder tells the session."""

from ingestor.capture.stream_state import Observed, Refusal, Refusals


def test_trades_by_symbol() -> None:
    observed = Observed()
    observed.saw_trades({"AAPL": 3, "MSFT": 1}, 1000)
    first_s = observed.last_trade_s["AAPL"]
    observed.saw_trades({"AAPL": 2}, 2000)
    assert observed.trades == 6
    assert observed.last_trade_us == {"AAPL": 2000, "MSFT": 1000}
    assert observed.last_trade_s["AAPL"] >= first_s == observed.last_trade_s["MSFT"]


def test_refusals_are_taken_once_the_last_of_each_symbol() -> None:
    refusals = Refusals()
    for text in ("Invalid symbol A", "Invalid symbol A again"):
        refusals.add(Refusal("A", text, 1))
    refusals.add(Refusal(None, "too many", 2))
    assert [one.text for one in refusals.take()] == ["Invalid symbol A again", "too many"]
    assert list(refusals.take()) == []


def test_what_a_venue_invents_is_bounded() -> None:
    observed, refusals = Observed(), Refusals()
    for thousand in range(30):
        observed.saw_trades({f"S{thousand}-{one}": 1 for one in range(1000)}, thousand)
        for one in range(1000):
            refusals.add(Refusal(f"S{thousand}-{one}", "", 1))
    observed.saw_trades({"S0-0": 1}, 99)
    assert observed.trades == 30_001
    assert len(observed.last_trade_s) == len(observed.last_trade_us) == 10_000
    assert observed.last_trade_us["S0-0"] == 99
    assert len(list(refusals.take())) == 1000


def test_when_the_disk_last_failed_outlives_its_recovery() -> None:
    observed = Observed()
    assert observed.disk_failed_s == float("-inf")
    observed.saw_disk(failing=True)
    failed_s = observed.disk_failed_s
    observed.saw_disk(failing=False)
    recovered_s = observed.disk_failed_s
    observed.saw_disk(failing=False)
    assert not observed.disk_failing
    assert 0 < failed_s <= recovered_s == observed.disk_failed_s


def test_what_was_asked_for_is_not_bounded_and_what_a_venue_invents_is() -> None:
    observed = Observed()
    asked = {f"S{number}": 1 for number in range(12_000)}
    observed.ask(asked)
    observed.saw_trades({f"X{number}": 1 for number in range(20_000)}, 1)
    observed.saw_trades(asked, 2)
    assert asked.keys() <= observed.last_trade_s.keys()
    assert len(observed.last_trade_us) == 22_000
