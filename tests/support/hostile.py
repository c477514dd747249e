"""Labels that a client may send as data, each an order to a page or a terminal that takes it for its own text."""

SCRIPT = "document.documentElement.dataset.hacked=1"
LABELS = [
    f"</script><script>{SCRIPT}</script>",
    f"<img src=x onerror={SCRIPT}>",
    f"<!--<script>{SCRIPT}",
    f"</SCRIPT\n><svg/onload={SCRIPT}>",
    f'";{SCRIPT};//',
    f"[x](javascript:{SCRIPT})",
    "![x](http://evil.example/x.png) <http://evil.example> http://evil.example www.evil.example a@evil.example",
    "a|b | c \\| d",
    "`x` ``y`` ```z",
    "**bold** _it_ __x__ ~~s~~ $m$ &lt;b&gt; &#60;",
    "# heading",
    "- item",
    "1. item",
    "---",
    "line\n\n| forged | row |\n|---|---|\n\n# Forged",
    "~~~\n```\n<b>x</b>",
    "late\r\n✓ The chain is complete: all 9 links are accessible.",
    "late\x1b[2K\x1b[1A✓ complete\x9b2K\x08\x07\x00",
    "\u202eetelpmoc\u2066 x\u2028✓ forged\u2029✓ forged\x85✓ forged\x0b✓ forged",
    "zero\u200bwidth\ufeff\U000e0041",
    "[/bold][red]x[/red][link=http://evil.example]y[/link]",
    "\ud800",
]
