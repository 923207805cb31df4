"""Great Expectations' Data Docs made readable offline: no external request, no clock, no random id."""

import re
from pathlib import Path

from ikddit import atomic

_STYLE = """
:root{color-scheme:light}
body{font:15px/1.5 system-ui,"Segoe UI",Roboto,sans-serif;color:#212529;background:#fff;margin:0}
a{color:#0b5cad;text-decoration:none}a:hover{text-decoration:underline}
h1,h2,h3,h4,h5{font-weight:600;line-height:1.25;margin:0 0 .4rem}
h4{font-size:1.3rem}h5{font-size:1.05rem}p{margin:0 0 .6rem}ul{margin:.2rem 0}
.navbar{background:#f5f6f8;border-bottom:1px solid #d5d9de;padding:.6rem 1.2rem;height:auto!important}
.breadcrumb{list-style:none;display:flex;flex-wrap:wrap;margin:0;padding:0;gap:.5rem}
.breadcrumb-item+.breadcrumb-item::before{content:"/";margin-right:.5rem;color:#8a929b}
.container-fluid,.container{padding:1rem 1.2rem}.container-fluid .container-fluid{padding:0}
body>.container-fluid>.row{display:flex;gap:1.5rem;align-items:flex-start}
body>.container-fluid>.row>.col-lg-2{flex:0 0 15rem;position:sticky;top:1rem}
body>.container-fluid>.row>:not(.col-lg-2){flex:1;min-width:0}
.sticky{position:static!important}
.card{border:1px solid #d5d9de;border-radius:6px;margin-bottom:1rem;overflow:auto}
.card-header{background:#f5f6f8;padding:.4rem .7rem;border-bottom:1px solid #d5d9de}
.card-body{padding:.5rem .7rem}
.nav{display:block;list-style:none;margin:0;padding:0}
.nav-link{display:block;padding:.1rem 0;word-break:break-all}
.btn{display:inline-block;border:1px solid #0b5cad;border-radius:4px;padding:.15rem .5rem;background:#fff;
color:#0b5cad;cursor:pointer;font-size:.85rem}.btn input{display:none}
.alert{border:1px solid #d5d9de;background:#f5f6f8;border-radius:6px;padding:.5rem .8rem;margin:.8rem 0 .4rem}
table{border-collapse:collapse;width:100%;margin:.3rem 0 .8rem}
th,td{border:1px solid #dfe3e7;padding:.35rem .6rem;text-align:left;vertical-align:top}
th{background:#f5f6f8;font-weight:600}td .show-scrollbars{max-height:24rem;overflow:auto}
.badge{display:inline-block;border-radius:4px;padding:.05rem .4rem;background:#e6e9ed;font-size:.85em}
.text-success{color:#1a7f37}.text-danger{color:#b42318}.text-warning{color:#9a6700}
.badge-danger{background:#b42318;color:#fff}.text-muted{color:#66707a}
.fa-check-circle::before{content:"\\2714"}.fa-times::before{content:"\\2718"}
.fa-exclamation-triangle::before{content:"\\26A0"}i.fas,i.fa{font-style:normal}
code{background:#f1f3f5;border-radius:3px;padding:0 .25em;font-size:.9em}
.collapse{display:none}.collapse.show{display:block}
.tooltip,.popover,.cooltip .top{display:none!important}
.hide-passed .passed{display:none}
"""

_SCRIPT = """
document.querySelectorAll('[data-toggle="collapse"]').forEach(function(a){
  a.addEventListener('click',function(e){e.preventDefault();
    var id=a.getAttribute('href')||a.dataset.target;
    document.getElementById(id.slice(1)).classList.toggle('show');});});
document.querySelectorAll('tr').forEach(function(r){
  if(r.querySelector('.fa-check-circle')&&!r.querySelector('.fa-times'))r.classList.add('passed');});
document.querySelectorAll('.ge-section').forEach(function(s){
  if(s.querySelector('.passed')&&!s.querySelector('.fa-times'))s.classList.add('passed');});
function showAllValidations(){document.body.classList.remove('hide-passed');}
function hideSucceededValidations(){document.body.classList.add('hide-passed');}
"""

_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")


def mend_data_docs(folder: Path) -> None:
    """Rewrite every page of a Data Docs site in place.

    Links to stylesheets, scripts, fonts and pictures elsewhere are replaced by one inline stylesheet and a
    few lines of script; times of the run and random ids become constants, so that equal data give equal
    pages. The index, a table that only a script from elsewhere could draw, becomes a list of the pages.
    """
    _write_index(folder)
    for page in sorted(folder.rglob("*.html")):
        text = page.read_text(encoding="utf-8")
        text = re.sub(r"<script\b.*?</script>", "", text, flags=re.DOTALL)
        text = re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
        text = re.sub(r"<link\b[^>]*>", "", text)
        text = re.sub(r"<img\b[^>]*>", "Data Docs", text)
        text = re.sub(r"<footer>.*?</footer>", "", text, flags=re.DOTALL)
        text = re.sub(r'<a\b[^>]*href="https?:[^>]*>(.*?)</a>', r"\1", text, flags=re.DOTALL)
        text = re.sub(r"\b\d{8}T\d{6}\.\d{6}Z(?!/)", "-", text)
        text = text.replace("1970-01-01T00:00:00Z", "-").replace("1970-01-01 00:00:00 UTC", "-")
        numbers: dict[str, str] = {}
        text = _UUID.sub(lambda m, n=numbers: n.setdefault(m.group(), f"id{len(n)}"), text)  # type: ignore[misc]
        text = text.replace("</head>", f"<style>{_STYLE}</style>\n</head>", 1)
        text = text.replace("</body>", f"<script>{_SCRIPT}</script>\n</body>", 1)
        text = "\n".join(line.rstrip() for line in text.splitlines() if line.strip()) + "\n"
        atomic.write_text(page, text)
    _remove(folder / "static")


def _write_index(folder: Path) -> None:
    rows = []
    for page in sorted((folder / "validations").rglob("*.html")):
        suite = page.relative_to(folder).parts[1]
        failed = "fa-times" in page.read_text(encoding="utf-8")
        icon = "fa-times text-danger" if failed else "fa-check-circle text-success"
        rows.append(
            f'<tr><td><i class="fas {icon}"></i></td>'
            f'<td><a href="{page.relative_to(folder)}">{suite}</a></td>'
            f'<td><a href="expectations/{suite}.html">what is expected</a></td></tr>'
        )
    head = "<th></th><th>Result by suite</th><th>Expectations</th>"
    (folder / "index.html").write_text(
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="UTF-8"><title>Data Docs</title></head><body>\n'
        '<nav class="navbar"><a href="../index.html">Validation summary</a></nav>'
        f'<div class="container"><h4>Data Docs</h4><table><tr>{head}</tr>{"".join(rows)}</table></div>\n'
        "</body></html>",
        encoding="utf-8",
    )


def _remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    if folder.exists():
        folder.rmdir()
