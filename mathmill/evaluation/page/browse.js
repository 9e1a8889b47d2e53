"use strict";
(function () {
  var problems = Array.prototype.slice.call(document.querySelectorAll("details.problem"));
  var chips = Array.prototype.slice.call(document.querySelectorAll("button.chip[data-tag]"));
  var search = document.getElementById("search");
  var explain = document.getElementById("explain");
  var pages = JSON.parse(document.getElementById("pages").textContent);
  var tag = "all";
  function show() {
    var words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    var count = 0;
    problems.forEach(function (problem) {
      var tagged = tag === "all" || (" " + problem.dataset.tags + " ").indexOf(" " + tag + " ") >= 0;
      var text = words.length ? problem.textContent.toLowerCase() : "";
      var found = tagged && words.every(function (word) { return text.indexOf(word) >= 0; });
      problem.hidden = !found;
      count += found ? 1 : 0;
    });
    chips.forEach(function (chip) { chip.classList.toggle("on", chip.dataset.tag === tag); });
    var chip = chips.filter(function (each) { return each.dataset.tag === tag; })[0];
    var others = pages.counts.map(function (counts, number) { return [number, counts[tag] || 0]; })
      .filter(function (each) { return each[1] && each[0] !== pages.here; });
    explain.textContent = count + " of " + pages.total[tag] + " shown on this page"
      + (chip.title ? ": " + chip.title : "") + (others.length ? ". More on page " : "");
    others.slice(0, 12).forEach(function (each, place) {
      var link = document.createElement("a");
      link.href = pages.files[each[0]] + "#" + tag;
      link.textContent = (each[0] + 1) + " (" + each[1] + ")";
      explain.appendChild(document.createTextNode(place ? ", " : ""));
      explain.appendChild(link);
    });
    Array.prototype.forEach.call(document.querySelectorAll("a.page"), function (link) {
      link.href = link.getAttribute("href").split("#")[0] + "#" + tag;
    });
  }
  function take(name) {
    if (chips.some(function (chip) { return chip.dataset.tag === name; })) {
      tag = name;
      show();
    } else {
      var problem = document.getElementById(name);
      if (problem) { tag = "all"; show(); problem.open = true; problem.scrollIntoView(); }
    }
  }
  chips.forEach(function (chip) {
    chip.addEventListener("click", function () { history.replaceState(null, "", "#" + chip.dataset.tag); take(chip.dataset.tag); });
  });
  search.addEventListener("input", show);
  window.addEventListener("hashchange", function () { take(decodeURIComponent(location.hash.slice(1))); });
  take("all");
  if (location.hash) { take(decodeURIComponent(location.hash.slice(1))); }
})();
