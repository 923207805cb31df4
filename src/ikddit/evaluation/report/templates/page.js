(function () {
  "use strict";
  // Folded parts are for the screen: paper has no clicks.
  window.addEventListener("beforeprint", function () {
    document.querySelectorAll("details").forEach(function (part) { part.open = true; });
  });
  var wafers = Array.from(document.querySelectorAll(".wafer")), pick = document.getElementById("pick");
  if (!pick) return;
  document.documentElement.classList.add("js");
  function show(i, remember) {
    i = (i + wafers.length) % wafers.length;
    wafers.forEach(function (wafer, k) { wafer.hidden = k !== i; });
    pick.value = String(i);
    if (remember) history.replaceState(null, "", "#wafer=" + encodeURIComponent(wafers[i].dataset.barcode));
  }
  function named() {
    var found = /^#wafer=(.+)$/.exec(location.hash);
    if (!found) return -1;
    var barcode = decodeURIComponent(found[1]);
    return wafers.findIndex(function (wafer) { return wafer.dataset.barcode === barcode; });
  }
  function go(step) { show(Number(pick.value) + step, true); }
  pick.addEventListener("change", function () { show(Number(pick.value), true); });
  document.getElementById("before").addEventListener("click", function () { go(-1); });
  document.getElementById("after").addEventListener("click", function () { go(1); });
  document.getElementById("wafers").addEventListener("keydown", function (event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "ArrowLeft") { go(-1); event.preventDefault(); }
    if (event.key === "ArrowRight") { go(1); event.preventDefault(); }
  });
  window.addEventListener("hashchange", function () { if (named() >= 0) show(named(), false); });
  var asked = named();
  show(asked >= 0 ? asked : Number(pick.dataset.first), false);
  if (asked >= 0) document.getElementById("wafers").scrollIntoView();
})();
