"""The style sheet of the report: light and dark, on a phone and on paper."""

from __future__ import annotations

__all__ = ["STYLE", "SVG_STYLE"]

STYLE = """
:root{color-scheme:light dark;--page:#fff;--text:#1c1e21;--soft:#5d636b;--line:#d9dde2;--card:#f6f7f9;--accent:#8a2be2;
--better:#1763c6;--worse:#b45309;--same:#6b7280}
@media (prefers-color-scheme:dark){:root{--page:#15171a;--text:#e8eaed;--soft:#a0a7b0;--line:#363b42;--card:#1f2226;
--accent:#c79bff;--better:#6cabff;--worse:#f0a04b;--same:#98a1ab}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1120px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:1.7rem;line-height:1.25;margin:0 0 8px;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:40px 0 12px;overflow-wrap:anywhere}
p{max-width:75ch;overflow-wrap:anywhere}
.hint,small,figcaption{color:var(--soft);font-size:.85rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:8px 9px;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th:first-child{padding-left:0}
thead th{color:var(--soft);font-size:.85rem;font-weight:600}
tbody th{font-weight:600;overflow-wrap:anywhere;min-width:13rem}
td small{display:block}
.number{text-align:right;white-space:nowrap}
thead .number,.number small{white-space:normal}
.number small.whole,td.whole{white-space:nowrap}
svg{max-width:100%;height:auto;display:block}
svg text{font:12px system-ui,-apple-system,"Segoe UI",sans-serif;fill:var(--text)}
svg .axis{fill:var(--soft)}
svg .grid{stroke:var(--line);stroke-width:1}
svg .base{stroke:var(--soft);stroke-dasharray:5 4}
svg .whisker{stroke:var(--accent);stroke-width:1.6;fill:none}
svg .point{fill:var(--accent)}
svg .first{fill:var(--text)}
svg .whisker.better{stroke:var(--better)}
svg .whisker.worse{stroke:var(--worse)}
svg .whisker.same{stroke:var(--same)}
svg .point.better{fill:var(--better)}
svg .point.worse{fill:var(--worse)}
svg .point.same{fill:var(--same)}
svg .seed{fill:none;stroke:var(--soft)}
svg .curve{fill:none;stroke:var(--text);stroke-width:1.8}
svg .curve.thin{stroke:var(--soft);stroke-width:.8}
svg .curve.base{stroke:var(--soft);stroke-width:1.4;stroke-dasharray:5 4}
svg .curve.dotted{stroke-dasharray:2 3}
svg .lead{stroke:var(--soft);stroke-width:.8}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:.85rem;color:var(--soft);max-width:none}
.dot,.swatch{display:inline-block;width:11px;height:11px;border-radius:50%;margin-right:7px;background:var(--accent)}
.swatch{width:18px;height:13px;border-radius:3px;border:1px solid var(--line);vertical-align:-1px;background:none}
.dot.first{background:var(--text)}
.dot.better{background:var(--better)}
.dot.worse{background:var(--worse)}
.dot.same{background:var(--same)}
.up1{background:rgba(124,58,190,.1)}
.up2{background:rgba(124,58,190,.2)}
.up3{background:rgba(124,58,190,.32)}
.down1{background:rgba(15,118,110,.1)}
.down2{background:rgba(15,118,110,.2)}
.down3{background:rgba(15,118,110,.32)}
@media screen and (prefers-color-scheme:dark){
.up1{background:rgba(190,140,255,.16)}
.up2{background:rgba(190,140,255,.28)}
.up3{background:rgba(190,140,255,.42)}
.down1{background:rgba(45,190,175,.14)}
.down2{background:rgba(45,190,175,.26)}
.down3{background:rgba(45,190,175,.4)}
}
td[class*=up] small,td[class*=down] small,td[class*=up]::before,td[class*=down]::before{color:var(--text)}
.dot,.swatch,td{print-color-adjust:exact;-webkit-print-color-adjust:exact}
.verdicts{list-style:none;padding:0;margin:18px 0 0}
.verdicts li{margin:0 0 10px;padding-left:18px;text-indent:-18px;overflow-wrap:anywhere}
.verdicts small{display:block;text-indent:0}
.box{border:1px solid var(--line);border-radius:8px;background:var(--card);padding:14px 18px;margin:18px 0}
.box dl{display:flex;flex-wrap:wrap;gap:6px 28px;margin:0}
.box dt{color:var(--soft);font-size:.85rem}
.box dd{margin:0;overflow-wrap:anywhere}
.box .verdicts{margin-top:14px}
.box p{margin:10px 0 0}
.scroll{overflow-x:auto}
.narrow{display:none}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));gap:20px}
figure{margin:0;padding:12px;background:var(--card);border:1px solid var(--line);border-radius:8px;overflow-x:auto}
figure.wide{grid-column:1/-1}
figure img{display:block;max-width:100%;height:auto;border-radius:4px;background:#fff}
figcaption{margin-top:8px;overflow-wrap:anywhere}
pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px;font-size:.85rem;
white-space:pre-wrap;overflow-wrap:anywhere}
@media (max-width:700px){
main{padding:20px 14px 48px}
table{font-size:.85rem}
th,td{padding:6px 7px}
th:first-child{position:sticky;left:0;background:var(--page);min-width:7.5rem;max-width:9.5rem;padding-right:8px;
border-right:1px solid var(--line)}
tbody th{font-size:.8rem}
.broad{display:none}
.narrow{display:block}
figure.wide img{max-width:none;width:820px}
}
@media print{
:root{color-scheme:light;--page:#fff;--text:#000;--soft:#444;--line:#bbb;--card:#fff;--accent:#6a1fb0;
--better:#1763c6;--worse:#b45309;--same:#6b7280}
main{max-width:none;padding:0}
body{font-size:10.5pt}
table{font-size:8.5pt}
thead th,small,td small,.hint,.legend{font-size:7.5pt}
th,td{padding:4px 5px}
tbody th{min-width:6.5rem}
figure,tr,svg,pre,li{break-inside:avoid}
h2{break-after:avoid}
}
"""

# For a picture that stands alone: the rules of the page that concern pictures, and their colours.
SVG_STYLE = "\n".join(
    [
        ":root{--page:#fff;--text:#1c1e21;--soft:#5d636b;--line:#d9dde2;--accent:#8a2be2;",
        "--better:#1763c6;--worse:#b45309;--same:#6b7280;background:var(--page)}",
    ]
    + [line.removeprefix("svg ") for line in STYLE.splitlines() if line.startswith("svg ")]
)
