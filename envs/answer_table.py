r"""What counts as the right answer, by example: the specification of the verifiers ``numeric`` and ``exact``.

Each row holds a reply, the gold answer, and whether the first is right.

>>> from gspo_rllib.envs.verifiers import exact, numeric
>>> [(reply, gold) for reply, gold, right in NUMERIC if numeric(reply, gold, {}) != right]
[]
>>> [(reply, gold) for reply, gold, right in EXACT if exact(reply, gold, {}) != right]
[]
"""

from __future__ import annotations

Row = tuple[str, str, bool]

_SHORT: tuple[Row, ...] = (
    # which part of the reply counts
    ("3 * 4 = 12, and 12 + 5 = 17", "17", True),
    ("So she has 17 apples. #### 17", "#### 17", True),
    ("The answer is: $17.00.", "17", True),
    ("**Answer:** 17", "17", True),
    ("17 or 18", "17", False),
    ("17 or 18", "18", True),
    (r"first \boxed{12}, then \boxed{17}", "17", True),
    (r"\boxed{17} since 4 * 4 = 16", "17", True),
    (r"\boxed{17} or so, but it was cut \boxed{1", "17", True),
    (r"\boxed{17", "17", False),  # cut off: it might have been 170
    (r"\fbox{17}", "17", True),
    (r"put it in \boxed{}: 17", "17", True),
    # reasoning
    ("<think>17</think> 18", "17", False),
    ("<think>18</think> 17", "17", True),
    ("18, no, </think> 17", "17", True),
    ("18</think>19</think>17", "17", True),
    ("<think>so it is 17", "17", False),
    (r"<think>so it is \boxed{17}", "17", False),
    ("17 <think> or 18?", "17", False),
    ("<think>17</think>", "17", False),
    ("[THINK]18[/THINK]17", "17", True),
    # signs
    ("-7", "-7", True),
    ("−7", "-7", True),  # U+2212
    ("–7", "-7", True),  # an en dash
    ("-$7", "-7", True),
    ("$-7", "-7", True),
    ("$-7$", "-7", True),
    (r"-\$7", "-7", True),
    ("minus 7", "-7", True),
    ("x = - 7", "-7", True),
    ("7", "-7", False),
    ("5-10", "-10", False),
    ("5-10", "10", True),
    ("5–10", "-10", False),
    ("5 - 10", "-10", False),
    ("from 5 to -10", "-10", True),
    ("- 7 apples", "7", True),  # the item of a list
    ("a 7-day week", "7", True),
    ("day-7", "-7", False),
    ("±7", "7", False),
    # integers are equal exactly, decimals that are rounded nearly
    ("12345679", "12345678", False),
    ("12345678", "12345678", True),
    ("12345678.0", "12345678", True),
    ("12345678.5", "12345678", False),
    ("100000000000000000001", "100000000000000000000", False),
    ("0.333333", "1/3", True),
    ("0.33", "1/3", False),
    ("66666.6667", "200000/3", True),
    ("1234567.89", "1234567.90", False),
    ("2.50", "2.5", True),
    ("0.0000001", "0", False),
    ("007", "7", True),
    (".5", "1/2", True),
    ("5.", "5", True),
    # digits in groups, and lists
    ("1,234,567", "1234567", True),
    (r"1{,}234", "1234", True),
    (r"1\,234", "1234", True),
    ("1\u202f234", "1234", True),
    ("10 000", "10000", True),
    ("1_000", "1000", True),
    ("1,2,3", "123", False),
    ("1,2,3", "3", True),
    (r"3{,}5", "3.5", True),
    ("1.2.3", "3", False),
    ("12:30", "30", False),
    # fractions
    ("3/4", "0.75", True),
    ("6/8", "3/4", True),
    (r"\frac34", "3/4", True),
    (r"\frac{3}{4}", "3/4", True),
    (r"-\dfrac{3}{4}", "-0.75", True),
    (r"\frac{-3}{4}", "-3/4", True),
    (r"1\frac34", "7/4", True),
    ("1 3/4 cups", "1.75", True),
    ("1½", "1.5", True),
    (r"\frac{1}{\frac{2}{3}}", "1.5", True),
    (r"\frac{x}{4}", "4", False),
    ("1/0", "0", False),
    ("17/5/2024", "2024", False),
    # powers
    ("10^5", "100000", True),
    ("10^{-3}", "0.001", True),
    ("10⁵", "100000", True),
    ("10**5", "100000", True),
    ("-2^2", "-4", True),
    ("1e5", "100000", True),
    ("1.5E-3", "0.0015", True),
    (r"2.5 \times 10^{3}", "2500", True),
    ("2.5·10³", "2500", True),
    ("1e400", "10^400", True),
    ("1e400", "1e401", False),
    ("10^{10^{10}}", "10", False),
    ("10^{10^{10}}", "10^{10^{10}}", False),  # too large for this verifier
    # per cent: a hundredth; but where one side leaves the sign out, it may still mean per cent
    ("50%", "0.5", True),
    (r"50\%", "1/2", True),
    ("50 percent", "50%", True),
    ("50%", "50", True),
    ("50", "50%", True),
    ("0.5%", "0.5", False),
    ("5%", "50", False),
    # units
    ("6000 eggs", "6,000", True),
    ("42 cm^2", "42", True),
    ("42 cm²", "42", True),
    (r"42\text{ cm}^2", "42", True),
    ("60 km/h", "60", True),
    ("45°", "45", True),
    (r"45^\circ", "45", True),
    ("€5 million", "5000000", True),
    ("5 million", "5,000,000", True),
    ("$2.5k", "2500", True),
    ("42 g of H2O", "42", True),
    ("5!", "5", True),  # in a sentence
    # what is only a part of something
    ("2 + 3", "3", False),
    ("6 * 7", "42", False),  # a question is no answer
    (r"\sqrt{2}", "2", False),
    (r"2\pi", "2", False),
    ("x_1 = 5", "1", False),
    ("5a3f", "3", False),
    # a boxed answer is one formula
    (r"\boxed{x = 42}", "42", True),
    (r"\boxed{42 \text{ apples}}", "42", True),
    (r"\boxed{\$42}", "42", True),
    (r"\boxed{\text{42}}", "42", True),
    (r"\boxed{- 7}", "-7", True),
    (r"\boxed{1, 2}", "2", False),
    (r"\boxed{(3, 4)}", "4", False),
    (r"\boxed{5x}", "5", False),
    (r"\boxed{5!}", "5", False),
    (r"\boxed{x > 5}", "5", False),
    (r"\boxed{5-10}", "10", False),
    # no number at all
    ("", "0", False),
    ("none", "0", False),
    ("infinity", "0", False),
    ("nan", "0", False),
)

NUMERIC: tuple[Row, ...] = (
    *_SHORT,
    ("9" * 5000, "9" * 5000, False),  # too long for this verifier
    ("12 " * 100_000 + "17", "17", True),  # a long reply is judged by its end
)

EXACT: tuple[Row, ...] = (
    ("Paris", "paris", True),
    ("Answer: New\nYork", "new  york", True),
    ("York", "New York", False),
    ("New York City", "New York", False),
    ("The answer is **Paris**.", "Paris", True),
    (r"so \boxed{\text{Paris}}", "Paris", True),
    ("<think>Rome</think>Paris", "Paris", True),
    ("<think>Rome</think>Paris", "Rome", False),
    ("<think>Paris", "Paris", False),
    ("Paris</think>", "Paris", False),
    ("−5", "-5", True),
    ("it’s “so”", 'it\'s "so"', True),
    ("Paris", "Paris\u200b", True),
    ("`**`", "**", True),  # what could be markup, and stands alone
    ("*", "**", False),
    (".", "*", False),
    ("$", "$", True),
    ("$$", "$", False),
    ("$x^2$", "x^2", True),
    ("12345679", "12345678", False),
    ("", "", False),  # nothing is no answer
    ("None", "none", True),
    ("Rome, " * 30_000 + "#### Paris", "Paris", True),
)
