"""The dashboard in the browser: read-only pages over ClickHouse, rendered here.

- `view`     what a request asks for, checked: level, days, filters, sort, page
- `queries`  the SQL of each page, a value with bound parameters
- `figures`  rows as the pages show them: ratios, amounts, budgets
- `chart`    the spend curve as SVG
- `server`   routes, the token, security headers

Invariants: nothing is written, ever; whatever a request says reaches SQL as a bound parameter or
as a choice from a fixed list; pages need no network beyond this server and work without script.
"""
