"""Large numbers are parsed and formatted with suffixes."""

import pytest

from slicefine_pl.scaling.units import format_count, format_percent, parse_quantity


@pytest.mark.parametrize(
    ("number", "text"),
    [(85e6, "85M"), (8.634e19, "8.63e19"), (999.7e6, "1B"), (1234.0, "1.23K"), (999.4, "999"), (1e15, "1e15")],
)
def test_counts(number, text):
    assert format_count(number) == text
    assert parse_quantity(text) == pytest.approx(number, rel=5e-3)


@pytest.mark.parametrize(("share", "text"), [(1.0, "100 %"), (12.3, "1,230 %"), (0.875, "87.5 %"), (0.0, "0 %")])
def test_percentages_without_exponents(share, text):
    assert format_percent(share) == text


@pytest.mark.parametrize("text", ["lots", "-5", "0", "inf", "nan", "", "M"])
def test_text_that_is_not_a_positive_number(text):
    with pytest.raises(ValueError, match=f"'{text}' is not a positive number"):
        parse_quantity(text)
