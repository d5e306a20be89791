"""The style of the report page: readable in light, in dark, on paper and on a narrow screen."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --soft: #f3f5f7; --rule: #d3d9df; --dim: #59636e;
  --first: #1f6fb5; --second: #c2570c; --good: #1a7f37; --bad: #c4232b; --open: #7a5c00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --paper: #14171a; --soft: #1d2227; --rule: #39424b;
  --dim: #9aa5b1; --first: #62abe8; --second: #f0974e; --good: #4cc26a; --bad: #ff7b74; --open: #e0b64a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 64rem; color: var(--ink); background: var(--paper);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.15rem; font-weight: 600; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .75rem; padding-bottom: .3rem; border-bottom: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
p, li { max-width: 46rem; }
.byline, .dim { color: var(--dim); }
.byline { margin: 0 0 1.25rem; }
.verdict { border-left: .5rem solid var(--open); background: var(--soft); padding: 1rem 1.25rem; margin: 0 0 1rem;
  border-radius: 0 .4rem .4rem 0; }
.verdict.good { border-color: var(--good); }
.verdict.bad { border-color: var(--bad); }
.verdict p { font-size: 1.3rem; line-height: 1.4; margin: 0; max-width: none; font-weight: 600; }
.verdict p + p { font-size: 1rem; font-weight: 400; margin-top: .5rem; }
.scroll { overflow-x: auto; }
.scroll table { min-width: 44rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .5rem .75rem .5rem 0; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; color: var(--dim); white-space: nowrap; }
th.wide { width: 52%; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.claim td { border-bottom: none; padding-top: 1rem; font-weight: 600; }
.mark { font-weight: 600; white-space: nowrap; }
.good .mark, .mark.good { color: var(--good); }
.mark.bad { color: var(--bad); }
.mark.open { color: var(--open); }
details { margin: .35rem 0; }
summary { cursor: pointer; color: var(--dim); }
figure { margin: 1.5rem 0 2rem; }
figcaption { color: var(--dim); font-size: .92rem; max-width: 46rem; }
svg.plot { width: 100%; max-width: 46rem; height: auto; display: block; }
dl { display: grid; grid-template-columns: minmax(9rem, max-content) 1fr; gap: .25rem 1.25rem; margin: 0; }
dt { color: var(--dim); }
dd { margin: 0; overflow-wrap: anywhere; }
code, .code { font: .88em ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .5rem; } }
@media print { body { max-width: none; } details { display: block; } }
"""
