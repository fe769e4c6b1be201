"""How a report looks: on light and dark screens, on paper, and to those who see colours differently.

The colours of arms are those of Okabe and Ito (Color Universal Design, 2008), darkened or lightened until they stand
out from the page by 3 to 1.
"""

from typing import Final

STYLE: Final = """
:root{color-scheme:light dark;--page:#fff;--raised:#f5f6f8;--ink:#1b1f24;--soft:#59636e;--rule:#d5dae0;--grid:#e6e9ed;
--a0:#0072b2;--a1:#d55e00;--a2:#00805e;--a3:#a8487f;--a4:#7d6200;--a5:#4a4f57;--hatch:#ffffff99;
--go:#00664b;--go-bg:#e2f3ed;--no:#a83f00;--no-bg:#fcebe1;--open:#5a4b85;--open-bg:#efecf7}
@media (prefers-color-scheme:dark){:root{--page:#12151a;--raised:#1b2027;--ink:#e8ebef;--soft:#a2adb9;--rule:#39424d;
--grid:#262d36;--a0:#5db3ee;--a1:#ff9b5c;--a2:#40cf9f;--a3:#e89fcb;--a4:#dfc04f;--a5:#c3c8cf;--hatch:#12151a99;
--go:#5fd9b1;--go-bg:#12352b;--no:#ffab7a;--no-bg:#40220f;--open:#c3b4f2;--open-bg:#2a2440}}
@media print{:root{--page:#fff;--raised:#fff;--ink:#000;--soft:#444;--rule:#aaa;--grid:#ddd;--a0:#0072b2;--a1:#d55e00;
--a2:#00805e;--a3:#a8487f;--a4:#7d6200;--a5:#4a4f57;--hatch:#ffffff99;--go:#00664b;--go-bg:#fff;--no:#a83f00;
--no-bg:#fff;--open:#5a4b85;--open-bg:#fff}}
@page{margin:15mm}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Liberation Sans","DejaVu Sans",sans-serif;font-variant-numeric:tabular-nums}
main{max-width:1060px;margin:0 auto;padding:32px 24px 64px}
h1{font-size:2rem;line-height:1.2;margin:0 0 8px;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:1.35rem;line-height:1.3;margin:0 0 16px;overflow-wrap:anywhere}
h3{font-size:1rem;margin:24px 0 8px}
header p{margin:0;color:var(--soft);overflow-wrap:anywhere}
section{margin-top:40px;padding-top:28px;border-top:1px solid var(--rule)}
.verdict{display:flex;flex-wrap:wrap;align-items:center;gap:4px 14px;margin:0 0 20px;padding:16px 20px;
border-radius:10px;border:2px solid}
.verdict strong{font-size:1.5rem;line-height:1.2}
.verdict .words{color:var(--ink);flex:1 1 20rem;overflow-wrap:anywhere}
.halted{margin:24px 0 0;padding:12px 20px;overflow-wrap:anywhere;background:var(--no-bg);
border-left:6px solid var(--no)}
.halted strong{color:var(--no)}.halted+section{margin-top:24px;border-top:0;padding-top:0}
.sign{display:inline-flex;align-items:center;justify-content:center;flex:none;width:1.35em;height:1.35em;
margin-right:.45em;border:2px solid;font-weight:700;line-height:1;font-size:.85em}
.verdict .sign{font-size:1.25rem;margin:0}
.go .sign,.sign.go{border-radius:50%}.open .sign,.sign.open{border-style:dashed;border-radius:50%}
.go,.sign.go{color:var(--go)}.no-go,.sign.no-go{color:var(--no)}.open,.sign.open{color:var(--open)}
.verdict.go{background:var(--go-bg)}.verdict.no-go{background:var(--no-bg)}
.verdict.open{background:var(--open-bg);border-style:dashed}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(210px,1fr));gap:12px;margin:20px 0}
.tiles>div{background:var(--raised);border:1px solid var(--rule);border-radius:10px;padding:14px 16px}
dl,dd{margin:0}dt,.tiles dd:last-child{color:var(--soft);font-size:.875rem}
.big{font-size:1.6rem;font-weight:650;line-height:1.3}
.facts>div{padding:8px 0;border-bottom:1px solid var(--rule);overflow-wrap:anywhere}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:8px 32px;align-items:start}
.table{overflow-x:auto;margin:16px 0}
.table:focus-visible,summary:focus-visible{outline:3px solid var(--a0);outline-offset:2px}
table{border-collapse:collapse;width:100%;font-size:.9375rem}
caption{text-align:left;color:var(--soft);font-size:.875rem;padding:0 0 6px}
th,td{padding:8px 10px;border-bottom:1px solid var(--rule);text-align:left;vertical-align:top}
th,td{min-width:4.5rem}tbody th+td:not(.n){min-width:8rem}
th:first-child,td:first-child{padding-left:0}th:last-child,td:last-child{padding-right:0}
thead th{font-size:.8125rem;color:var(--soft);font-weight:600;vertical-align:bottom}
tbody th{font-weight:600;min-width:7rem}
.n{text-align:right;white-space:nowrap}thead .n{white-space:normal}
bdi{overflow-wrap:anywhere}
figure{margin:20px 0 8px}figcaption{color:var(--soft);font-size:.875rem;margin-top:6px}
.chart{overflow-x:auto}.chart svg{display:block;width:100%;min-width:680px;height:auto}
.key{width:16px;height:12px;margin-right:8px;vertical-align:-1px}.hidden{position:absolute}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 24px;margin:0;padding:0;font-size:.9375rem}
details{margin:12px 0}summary{cursor:pointer;color:var(--soft);font-size:.9375rem;width:fit-content}
.events{padding-left:1.6em;margin:0}.events li{margin:8px 0;overflow-wrap:anywhere}.events time{color:var(--soft)}
.evidence{color:var(--soft);font-size:.875rem}.grave{color:var(--no)}.by{font-size:.875rem}
svg text{fill:var(--ink);font-size:13px}
.tick{fill:var(--soft);font-size:12px}.name,.head{font-weight:600}.value{font-size:12px}
.name{paint-order:stroke;stroke:var(--page);stroke-width:3px}.value{paint-order:stroke;stroke:var(--page);stroke-width:3px}
.grid{stroke:var(--grid)}.axis{stroke:var(--soft)}
.arm-0{--arm:var(--a0)}.arm-1{--arm:var(--a1)}.arm-2{--arm:var(--a2)}
.arm-3{--arm:var(--a3)}.arm-4{--arm:var(--a4)}.arm-5{--arm:var(--a5)}
.ground{fill:var(--arm)}.hatch{fill:none;stroke:var(--hatch);stroke-width:1.6}.swatch{stroke:var(--soft);stroke-width:.5}
.mark{stroke:var(--ink);stroke-width:1.5}.mark-1{stroke-dasharray:6 3}.mark-2{stroke-dasharray:2 3}
.range{stroke:var(--arm);stroke-width:3}.point{fill:var(--arm);stroke:var(--page);stroke-width:1}
.line{fill:none;stroke:var(--arm);stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.line.arm-1{stroke-dasharray:7 3}.line.arm-2{stroke-dasharray:2 4}.line.arm-3{stroke-dasharray:10 3 2 3}
.line.arm-4{stroke-dasharray:12 5}.line.arm-5{stroke-dasharray:4 2}
.planned{fill:none;stroke:var(--ink);stroke-width:1.5;stroke-dasharray:5 4}
.limit{fill:none;stroke:var(--ink);stroke-width:2.5;stroke-dasharray:14 6}.limit-name{font-weight:600}
.volume{fill:var(--soft);opacity:.55}.hover{fill:transparent}
.flag{stroke:var(--ink);fill:var(--page);stroke-width:1.5}.flag.grave{stroke:var(--no)}
.number{font-size:11px;font-weight:700}
@media print{html,body{font-size:11px}main{max-width:none;padding:0}section{margin-top:16px;padding-top:14px}
.tiles{grid-template-columns:repeat(4,1fr)}.pair{grid-template-columns:1fr 1fr}
.table,.chart{overflow:visible}.chart svg{min-width:0}details{display:none}th,td{padding:4px 6px}
figure,tr,.verdict,.halted,.tiles,.pair,.legend{break-inside:avoid}h2,h3,caption,.legend{break-after:avoid}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
""".strip()
