"use strict";

// Tables whose header cells hold buttons sort by the cells' data-value; what has no value stays at the end.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const header = button.closest("th");
    const table = header.closest("table");
    const falling = header.getAttribute("aria-sort") === "ascending";
    for (const other of header.parentNode.children) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const value = (row) => row.cells[header.cellIndex].dataset.value;
    const compare = (a, b) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      const order = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
      return falling ? -order : order;
    };
    const rows = Array.from(table.tBodies[0].rows).sort((a, b) => compare(value(a), value(b)));
    table.tBodies[0].append(...rows);
  });
}

const filter = document.getElementById("class-filter");
if (filter) {
  const show = () => {
    for (const row of document.querySelectorAll("#cases tbody tr")) {
      row.hidden = filter.value !== "" && row.dataset.class !== filter.value;
    }
  };
  filter.addEventListener("change", show);
  show();
}

function bytes(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0)).buffer;
}

function unpacked(packed, scale) {
  const steps = new Uint16Array(bytes(packed.vertices));
  const vertices = Float32Array.from(steps, (step, i) => packed.low_mm[i % 3] + step * packed.step_mm);
  const distances = new Uint8Array(bytes(packed.distances));
  const colours = new Uint8Array(4 * distances.length);
  distances.forEach((distance, i) => {
    colours.set(scale.subarray(3 * distance, 3 * distance + 3), 4 * i);
    colours[4 * i + 3] = 255;
  });
  return { vertices, triangles: new Uint32Array(bytes(packed.triangles)), colours };
}

function rgba(hex) {
  return new Uint8Array([1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).concat(255));
}

async function startViewer() {
  const element = document.getElementById("surfaces-data");
  if (!element) return;
  const note = document.getElementById("viewer-note");
  if (!document.createElement("canvas").getContext("webgl2")) {
    note.textContent = "This browser has no WebGL 2, so nothing can be turned here; the pictures of each case show the same surfaces.";
    return;
  }
  const content = JSON.parse(element.textContent);
  const scale = new Uint8Array(bytes(content.scale));
  const viewer = new niivue.Niivue({
    backColor: [1, 1, 1, 1], show3Dcrosshair: false, isColorbar: false, loadingText: "", dragAndDropEnabled: false,
    fontColor: [0, 0, 0, 1],
  });
  await viewer.attachToCanvas(document.getElementById("viewer"));
  viewer.setSliceType(viewer.sliceTypeRender);
  const caseChoice = document.getElementById("viewer-case");
  const showChoice = document.getElementById("viewer-show");

  function show() {
    for (const mesh of [...viewer.meshes]) viewer.removeMesh(mesh);
    const [side, colouring] = showChoice.value.split(" ");
    for (const surface of content.cases[caseChoice.value]) {
      if (!surface[side]) continue;
      const mesh = unpacked(surface[side], scale);
      const colours = colouring === "class" ? rgba(surface.colour) : mesh.colours;
      viewer.addMesh(new niivue.NVMesh(mesh.vertices, mesh.triangles, surface.label, colours, 1, true, viewer.gl));
    }
    viewer.drawScene();
  }
  caseChoice.addEventListener("change", show);
  showChoice.addEventListener("change", show);
  show();
  viewer.setRenderAzimuthElevation(145, 20);
  note.remove();
  document.getElementById("viewer").dataset.ready = "yes";
}

startViewer();
