"use strict";
// A cursor over each timeline that follows its video, the segment's row in words, and maps as an overlay on the frame.
const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];

function colour(value) {
  const place = value * (VIRIDIS.length - 1), low = Math.min(Math.floor(place), VIRIDIS.length - 2), share = place - low;
  return VIRIDIS[low].map((one, k) => one + share * (VIRIDIS[low + 1][k] - one));
}

// one picture holds the maps of all segments below each other, bright is high
function layers(source, count) {
  const image = new Image(), found = [];
  image.onload = () => {
    const canvas = document.createElement("canvas"), rows = image.height / count;
    canvas.width = image.width; canvas.height = image.height;
    const brush = canvas.getContext("2d", {willReadFrequently: true});
    brush.drawImage(image, 0, 0);
    for (let k = 0; k < count; k++) {
      const piece = brush.getImageData(0, k * rows, image.width, rows), layer = document.createElement("canvas");
      layer.width = image.width; layer.height = rows;
      for (let i = 0; i < piece.data.length; i += 4) {
        const value = piece.data[i] / 255, [r, g, b] = colour(value);
        piece.data[i] = r; piece.data[i + 1] = g; piece.data[i + 2] = b; piece.data[i + 3] = 255 * value;
      }
      layer.getContext("2d").putImageData(piece, 0, 0);
      found.push(layer);
    }
    image.dispatchEvent(new Event("ready"));
  };
  image.src = source;
  return {image, found};
}

for (const section of document.querySelectorAll("section.recorded")) {
  const data = JSON.parse(section.querySelector("script").textContent);
  const video = section.querySelector("video"), canvas = section.querySelector("canvas");
  const timeline = section.querySelector(".timeline"), cursor = section.querySelector(".cursor");
  const now = section.querySelector(".now"), frame = timeline.parentElement;
  const maps = {}; let shown = "", strength = 0.6, last = null;

  const segment = second => {
    let low = 0, high = data.segments.length - 1;
    while (low < high) { const middle = (low + high + 1) >> 1; if (data.segments[middle][0] <= second) low = middle; else high = middle - 1; }
    return low;
  };

  const place = second => {
    const share = Math.min(1, Math.max(0, (second - data.begin) / (data.end - data.begin)));
    return data.left + share * (data.right - data.left);
  };

  function draw(index) {
    const width = video.clientWidth, height = video.clientHeight, ratio = devicePixelRatio || 1;
    canvas.width = width * ratio; canvas.height = height * ratio;
    const own = maps[shown], layer = own && own.found[index];
    if (!layer) return;
    const scale = Math.min(canvas.width / video.videoWidth, canvas.height / video.videoHeight) || 1;
    const w = video.videoWidth * scale, h = video.videoHeight * scale, brush = canvas.getContext("2d");
    brush.globalAlpha = strength; brush.imageSmoothingEnabled = !data.maps[shown].mask;
    brush.drawImage(layer, (canvas.width - w) / 2, (canvas.height - h) / 2, w, h);
  }

  function update(force) {
    const second = video.currentTime, index = segment(second);
    cursor.style.left = `${100 * place(second)}%`;
    if (!video.paused && frame.scrollWidth > frame.clientWidth) {
      const x = place(second) * timeline.clientWidth;
      if (x < frame.scrollLeft + 80 || x > frame.scrollLeft + frame.clientWidth - 80) frame.scrollLeft = x - frame.clientWidth / 2;
    }
    if (index !== last || force === true) {
      last = index;
      const [begin, end, text] = data.segments[index], inside = second <= end + 0.05 || index + 1 < data.segments.length;
      now.replaceChildren(Object.assign(document.createElement("b"), {textContent: `${begin.toFixed(1)} to ${end.toFixed(1)} s`}),
                          inside ? `  ${text}` : "  after the last segment");
      draw(index);
    }
  }

  function follow() { update(); if (!video.paused && !video.ended) requestAnimationFrame(follow); }
  video.addEventListener("play", follow);
  for (const name of ["timeupdate", "seeked", "loadedmetadata"]) video.addEventListener(name, () => update(name !== "timeupdate"));
  addEventListener("resize", () => update(true));
  video.addEventListener("error", () => { now.textContent = "This browser does not play the video. Is it still where it was?"; }, true);

  const seek = event => {
    const box = timeline.getBoundingClientRect(), share = ((event.clientX - box.left) / box.width - data.left) / (data.right - data.left);
    const length = Number.isFinite(video.duration) ? video.duration : data.end;
    video.currentTime = Math.min(length, Math.max(0, data.begin + share * (data.end - data.begin)));
    update();
  };
  timeline.addEventListener("pointerdown", event => { seek(event); timeline.setPointerCapture(event.pointerId); });
  timeline.addEventListener("pointermove", event => { if (event.buttons) seek(event); });

  for (const input of section.querySelectorAll(".switch input")) input.addEventListener("input", () => {
    if (input.type === "range") strength = input.valueAsNumber;
    else {
      shown = input.value;
      if (shown && !maps[shown]) { maps[shown] = layers(data.maps[shown].source, data.segments.length); maps[shown].image.addEventListener("ready", () => update(true)); }
      const scale = section.querySelector(".legend"); if (scale) scale.hidden = !shown;
    }
    update(true);
  });
  update(true);
}
