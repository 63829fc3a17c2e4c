/* <segbook-live name="unet">: a network of the book that answers in the page.

   Loads nothing before its button is pressed. Then a worker runs the graph that lies
   in live/unet/ on a sample or on the reader's own picture, which goes nowhere. With
   beside="unet" a second network, or the same with other parts, stands beside it. With
   own, a reader can open a network of theirs: graph, weights and manifest, as
   utils/own_export.py writes them. */

const PLACE = new URL("live/", import.meta.url);
const SIDE = 1600; // of a photo, at most, in pixels

/* --- from probabilities to pictures --- */

/* Pixels above a threshold that hang together by their sides: their numbers, from 1 in
   the order of first pixels, as skimage.measure.label counts. */
export const instances = (probability, width, threshold) => {
  const numbers = new Int32Array(probability.length),
    parents = [0];
  const level = Math.fround(threshold); // as numpy compares float32
  const root = k => {
    while (parents[k] !== k) k = parents[k] = parents[parents[k]];
    return k;
  };
  for (let i = 0; i < numbers.length; i++) {
    if (!(probability[i] > level)) continue;
    const left = i % width && root(numbers[i - 1]);
    const above = i >= width && root(numbers[i - width]);
    const [low, high] = left < above ? [left, above] : [above, left];
    numbers[i] = low || high || parents.length;
    if (!high) parents.push(parents.length);
    else if (low) parents[high] = low;
  }
  const names = new Int32Array(parents.length);
  let count = 0;
  for (let k = 1; k < parents.length; k++) if (root(k) === k) names[k] = ++count;
  return {numbers: numbers.map(k => names[root(k)]), count};
};

/* Of an instance: hues that go round by the golden angle, as utils/live.py has them. */
const hue = number => {
  const h = (number * 137.508) % 360,
    a = 0.65 * 0.4;
  const part = n =>
    0.6 -
    a * Math.max(-1, Math.min(((n + h / 30) % 12) - 3, 9 - ((n + h / 30) % 12), 1));
  return [part(0), part(8), part(4)].map(v => Math.round(255 * v));
};

/* Numbers as a PNG that keeps them: indices of a palette, or grey of 16 bits. */
export const png = async (numbers, width, palette) => {
  const height = numbers.length / width,
    size = palette ? 1 : 2;
  const rows = new DataView(new ArrayBuffer(height * (1 + size * width)));
  numbers.forEach((value, i) => {
    const at = Math.floor(i / width) * (1 + size * width) + 1 + size * (i % width);
    size === 1 ? rows.setUint8(at, value) : rows.setUint16(at, value);
  });
  const packing = new Blob([rows])
    .stream()
    .pipeThrough(new CompressionStream("deflate"));
  const packed = await new Response(packing).arrayBuffer();
  const head = new DataView(new ArrayBuffer(13));
  head.setUint32(0, width);
  head.setUint32(4, height);
  head.setUint16(8, palette ? 0x0803 : 0x1000); // bits and kind of colour
  const chunk = (name, data) => {
    const all = new DataView(new ArrayBuffer(data.byteLength + 12));
    const bytes = new Uint8Array(all.buffer);
    all.setUint32(0, data.byteLength);
    bytes.set(new TextEncoder().encode(name), 4);
    bytes.set(new Uint8Array(data), 8);
    let crc = -1;
    for (const byte of bytes.subarray(4, -4)) {
      crc ^= byte;
      for (let k = 0; k < 8; k++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
    }
    all.setInt32(bytes.length - 4, ~crc);
    return all;
  };
  return new Blob(
    [
      Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10),
      chunk("IHDR", head.buffer),
      ...(palette ? [chunk("PLTE", Uint8Array.from(palette.flat()).buffer)] : []),
      chunk("IDAT", packed),
      chunk("IEND", new ArrayBuffer(0)),
    ],
    {type: "image/png"},
  );
};

const blank = (width, height) =>
  Object.assign(document.createElement("canvas"), {width, height});

/* Where a photo lies in a frame of another shape. */
const fit = (photo, [height, width]) => {
  const scale = Math.min(width / photo.width, height / photo.height);
  const w = Math.max(1, Math.round(photo.width * scale));
  const h = Math.max(1, Math.round(photo.height * scale));
  return {left: (width - w) >> 1, top: (height - h) >> 1, width: w, height: h};
};

/* A photo in a frame, as bytes (C, H, W). */
const pixels = (photo, box, {frame: [height, width], channels, margin}) => {
  const paint = blank(width, height).getContext("2d", {willReadFrequently: true});
  paint.fillStyle = `rgb(${channels === 3 ? margin : Array(3).fill(margin[1])})`;
  paint.fillRect(0, 0, width, height);
  paint.imageSmoothingQuality = "high";
  paint.drawImage(photo, box.left, box.top, box.width, box.height);
  const {data} = paint.getImageData(0, 0, width, height),
    size = width * height;
  const bytes = new Uint8Array(channels * size);
  for (let i = 0, k = 0; i < size; i++, k += 4)
    if (channels === 3) for (let c = 0; c < 3; c++) bytes[c * size + i] = data[k + c];
    else
      // grey, as Pillow has it
      bytes[i] =
        (19595 * data[k] + 38470 * data[k + 1] + 7471 * data[k + 2] + 32768) >> 16;
  return bytes;
};

/* The manifest of a reader's network: nothing in it may fetch anything. */
const opened = (text, file) => {
  try {
    const {graph, weights, frame, classes, samples, ...more} = JSON.parse(text);
    for (const {integrity} of [graph, weights])
      if (!/^sha256-[\w+/]{43}=$/.test(integrity)) throw 0;
    if (!(frame.length === 2 && [...frame, more.channels].every(Number.isInteger)))
      throw 0;
    return {
      margin: [124, 116, 104],
      ...more,
      graph,
      weights,
      frame,
      gates: more.gates ?? [],
      classes: classes.map(({name, colour}) => ({name, colour: colour.map(Number)})),
      samples: samples.filter(({file}) => /^data:image\//.test(file)),
    };
  } catch {
    throw new Error(
      `${file} is no manifest: choose the .json that was exported with the network.`,
    );
  }
};

/* --- the element --- */

const make = (tag, properties = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties))
    key in element && key !== "role"
      ? (element[key] = value)
      : element.setAttribute(key, value);
  element.append(...children);
  return element;
};
const button = (text, onclick, more = {}) =>
  make("button", {type: "button", onclick, ...more}, text);
const percent = share => `${Math.round(100 * share)} %`;

const STYLE = `
  :host { display: block; margin-block: 1rem; }
  [hidden] { display: none !important; }
  .foot { display: grid; }
  .foot > * { grid-area: 1 / 1; }
  .foot ::slotted(*), .foot slot { visibility: hidden; }
  button, .file {
    min-height: 2.2rem; padding: .25rem .8rem; cursor: pointer; font: inherit;
    border: 1px solid var(--pst-color-border, #999); border-radius: .4rem;
    color: var(--pst-color-text-base, #222);
    background: var(--pst-color-surface, #f5f5f5);
  }
  .file { display: inline-flex; align-items: center; box-sizing: border-box; }
  .file input { position: absolute; opacity: 0; width: 1px; height: 1px; }
  .go { display: flex; flex-wrap: wrap; gap: .3rem 1rem; align-items: center;
    align-content: start; padding-top: .5rem; }
  .go button { font-weight: 600; }
  select { min-height: 1.8rem; font: inherit; }
  :is(button, canvas, input, select):focus-visible, .file:focus-within {
    outline: 3px solid var(--pst-color-primary, #36c); outline-offset: 2px;
  }
  .panes { display: grid; gap: 1rem; max-width: 40rem;
    grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); }
  .panes.two { max-width: none; }
  .pane { min-width: 0; }
  .pane strong { display: block; }
  canvas, video { display: block; width: 100%; height: auto; border-radius: .4rem;
    touch-action: pan-y; cursor: crosshair; }
  .drop canvas { outline: 3px dashed var(--pst-color-primary, #36c); }
  fieldset { display: flex; flex-wrap: wrap; gap: .1rem 1rem; min-width: 0;
    margin: .6rem 0 0; padding: .3rem .7rem .5rem; border-radius: .4rem;
    border: 1px solid var(--pst-color-border, #999); }
  legend { padding: 0 .3rem; font-size: .9em; }
  label { display: inline-flex; align-items: center; gap: .4rem; min-height: 1.8rem; }
  input { accent-color: var(--pst-color-primary, #36c); }
  input[type=checkbox] { width: 1.1rem; height: 1.1rem; }
  .row { display: flex; flex-wrap: wrap; gap: .6rem 1rem; align-items: center;
    margin-top: .6rem; }
  .row img { display: block; height: 3.4rem; width: auto; border-radius: .2rem; }
  .row .thumb { padding: .2rem; line-height: 0; }
  .thumb[aria-pressed=true] { border: 2px solid var(--pst-color-primary, #36c); }
  .swatch { width: 1rem; height: 1rem; border-radius: .2rem;
    border: 1px solid var(--pst-color-border, #999); }
  p, output { display: block; margin: .5rem 0 0; line-height: 1.5; }
  output { min-height: 1.5em; font-variant-numeric: tabular-nums; }
  .small { font-size: .88em; color: var(--pst-color-text-muted, #555); }
  @media print { button, .row, fieldset, output { display: none !important; } }
`;

class Live extends HTMLElement {
  connectedCallback() {
    if (this.shadowRoot) return;
    this.go = button(`Try the network: ${this.dataset.size}`, () => this.start());
    this.said = make("p", {role: "status", hidden: true});
    this.root = this.attachShadow({mode: "open"});
    this.root.append(
      make("style", {textContent: STYLE}),
      make("slot", {name: "picture"}),
      make(
        "div",
        {className: "foot"},
        make("slot"),
        make(
          "div",
          {className: "go"},
          this.go,
          ...this.opener(),
          "It runs in your browser; no picture leaves your machine.",
        ),
      ),
      this.said,
    );
  }

  say(text) {
    this.said.hidden = false;
    this.said.textContent = text;
  }

  /* What went wrong, in a sentence that says what to do. */
  fail(error) {
    const text = error.message ?? String(error);
    const memory = /memory|bad_alloc|allocat|^error \d+/i.test(text);
    this.say(
      memory
        ? "There is not enough memory here for this network. Its frame is fixed, so " +
            `a smaller picture would not help; closing other pages may. (${text})`
        : text,
    );
  }

  ask(action, what) {
    const id = (this.asked = (this.asked ?? 0) + 1);
    return new Promise((done, never) => {
      this.waiting.set(id, {done, never});
      this.worker.postMessage({id, action, ...what});
    });
  }

  open() {
    this.waiting = new Map();
    const url = new URL("live-worker.mjs", import.meta.url);
    this.worker = new Worker(url, {type: "module"});
    this.worker.onmessage = ({data: {id, result, error}}) => {
      const {done, never} = this.waiting.get(id);
      this.waiting.delete(id);
      error === undefined ? done(result) : never(new Error(error));
    };
    this.worker.onerror = event => {
      event.preventDefault();
      const why = event.message ?? "it could not be fetched";
      for (const {never} of this.waiting.values())
        never(new Error(`The network's worker stopped: ${why}.`));
      this.waiting.clear();
      this.runtime = undefined;
    };
  }

  async json(path) {
    const answer = await fetch(new URL(path, PLACE)).catch(() => ({}));
    if (!answer.ok)
      throw new Error(`${path} could not be fetched: is there a network?`);
    return answer.json();
  }

  /* The worker, and where it finds what runs the graphs. */
  async prepare() {
    if (this.runtime) return this.runtime;
    if (typeof WebAssembly !== "object")
      throw new Error(
        "This browser has no WebAssembly, or it is switched off: the network " +
          "cannot run here.",
      );
    this.say("Fetching the network and what runs it…");
    const runtime = await this.json("runtime.json");
    for (const file of Object.values(runtime)) file.url = new URL(file.url, PLACE).href;
    this.open();
    return (this.runtime = runtime);
  }

  /* A place to choose the three files of a network, where the element offers it. */
  opener() {
    if (!this.hasAttribute("own") || this.hasAttribute("beside")) return [];
    const input = make("input", {
      type: "file",
      multiple: true,
      accept: ".onnx,.safetensors,.json",
      onchange: () => {
        this.use([...input.files]);
        input.value = "";
      },
    });
    const text = "Open a network: its .onnx, .safetensors and .json";
    return [make("label", {className: "file"}, text, input)];
  }

  /* Runs a network of the reader's from here on. */
  async use(files) {
    try {
      const [graph, weights, text] = [".onnx", ".safetensors", ".json"].map(end => {
        const found = files.filter(file => file.name.toLowerCase().endsWith(end));
        if (found.length === 1) return found[0];
        throw new Error(
          "Choose the three files of one network together: .onnx, .safetensors and " +
            `.json. There ${found.length ? "are several" : "is no"} ${end}.`,
        );
      });
      const manifest = opened(await text.text(), text.name);
      const runtime = await this.prepare();
      this.say("Opening the network…");
      const whole = (file, told) => ({...told, url: URL.createObjectURL(file)});
      const given = [whole(graph, manifest.graph), whole(weights, manifest.weights)];
      await this.ask("load", {
        name: "own",
        graph: given[0],
        weights: given[1],
        runtime,
      }).finally(() => given.forEach(({url}) => URL.revokeObjectURL(url)));
      const gates = manifest.gates.map(() => 1);
      this.panes = [{name: "own", manifest, at: PLACE, gates, fill: 0}];
      await this.show();
      this.panes[0].canvas.focus();
    } catch (error) {
      this.fail(error);
    }
  }

  async start() {
    this.go.disabled = true;
    try {
      const names = ["name", "beside"]
        .map(key => this.getAttribute(key))
        .filter(Boolean);
      const runtime = await this.prepare();
      const panes = [];
      for (const name of names) {
        const known = panes.find(pane => pane.name === name);
        const manifest = known?.manifest ?? (await this.json(`${name}/main.json`));
        const at = new URL(`${name}/`, PLACE);
        const whole = file => ({...file, url: new URL(file.file, at).href});
        const {graph, weights} = manifest;
        if (!known)
          await this.ask("load", {
            name,
            graph: whole(graph),
            weights: whole(weights),
            runtime,
          });
        panes.push({name, manifest, at, gates: manifest.gates.map(() => 1), fill: 0});
      }
      this.panes = panes;
      await this.show();
    } catch (error) {
      this.worker?.terminate();
      this.runtime = undefined;
      this.fail(error);
      this.go.disabled = false;
    }
  }

  /* Everything there is to see, once the network is there. */
  async show() {
    const {manifest, at} = this.panes[0];
    const {classes, thing, output} = manifest;
    this.manifest = manifest;
    this.single = output === "sigmoid"; // one class, with instances
    this.off = new Set();
    this.opacity = 0.55;
    this.threshold = manifest.threshold;
    const thumbs = await Promise.all(
      manifest.samples.map(async sample => {
        const picture = make("img", {
          alt: sample.alt,
          width: sample.width,
          height: sample.height,
          src: new URL(sample.file, at),
        });
        await picture.decode();
        return button(picture, () => this.take(picture), {
          className: "thumb",
          "aria-pressed": false,
        });
      }),
    );
    this.thumbs = thumbs;
    const file = make("input", {
      type: "file",
      accept: "image/*",
      onchange: () => {
        this.read(file.files[0]);
        file.value = "";
      },
    });
    const stage = make(
      "div",
      {className: this.panes.length > 1 ? "panes two" : "panes"},
      ...this.panes.map((pane, k) => this.pane(pane, k)),
    );
    this.probe = make("output", {"aria-live": "off"});
    this.hint =
      "Point at the picture, or use the arrow keys on it, for class and probability.";
    const shown = this.single
      ? [{...classes[thing], number: thing}]
      : classes.map((one, number) => ({...one, number}));
    this.legend = make(
      "fieldset",
      {},
      make("legend", {}, "Classes"),
      ...shown.map(one => this.entry(one)),
    );
    const slide = (text, key) => {
      const value = make("span", {}, String(this[key]));
      return make(
        "label",
        {},
        text,
        make("input", {
          type: "range",
          min: 0,
          max: 1,
          step: 0.01,
          value: this[key],
          oninput: event => {
            this[key] = Number(event.target.value);
            value.textContent = this[key];
            this.panes.forEach(pane => this.draw(pane, key === "threshold"));
          },
        }),
        value,
      );
    };
    this.live = make(
      "section",
      {"aria-label": `Live network: ${manifest.title}`},
      stage,
      this.probe,
      this.said,
      make(
        "div",
        {className: "row", role: "group", "aria-label": "Pictures"},
        ...thumbs,
        make("label", {className: "file"}, "Your picture", file),
        ...(navigator.mediaDevices?.getUserMedia
          ? [button("Camera", () => this.film(stage))]
          : []),
        ...this.opener(),
      ),
      make(
        "div",
        {className: "row"},
        slide("Opacity", "opacity"),
        ...(this.single ? [slide("Threshold", "threshold")] : []),
        ...this.panes.map(pane =>
          button(
            `Save ${
              this.panes.length > 1
                ? pane.title[0]
                : this.single
                  ? "the instances"
                  : "the classes"
            }`,
            () => this.save(pane),
          ),
        ),
      ),
      this.legend,
      make(
        "p",
        {className: "small"},
        `Trained on ${manifest.domain}; anything else is outside of what it knows. ` +
          "Nothing leaves your machine. Drop or paste a picture, too. " +
          manifest.terms,
      ),
    );
    this.root.replaceChildren(this.root.firstChild, this.live);
    this.receive(stage);
    const [height, width] = manifest.frame;
    await this.take(thumbs[0]?.firstChild ?? this.photo ?? blank(width, height));
  }

  /* The place of one answer: its picture and its switches. */
  pane(pane, number) {
    const {manifest} = pane,
      several = this.panes.length > 1;
    pane.title = several ? `${"AB"[number]}: ${manifest.title}` : manifest.title;
    pane.canvas = make("canvas", {
      tabIndex: 0,
      role: "application",
      "aria-label": `${pane.title}: the answer on the picture. Arrow keys name pixels.`,
    });
    pane.canvas.onpointermove = event => this.point(pane, event);
    pane.canvas.onpointerdown = event => this.point(pane, event);
    pane.canvas.onkeydown = event => this.step(pane, event);
    const again = () => {
      pane.stale = true;
      this.answer();
    };
    const switches = manifest.gates.map(({label}, k) =>
      make(
        "label",
        {},
        make("input", {
          type: "checkbox",
          checked: true,
          onchange: event => {
            pane.gates[k] = Number(event.target.checked);
            again();
          },
        }),
        label,
      ),
    );
    const choice = make(
      "select",
      {
        onchange: () => {
          pane.fill = choice.selectedIndex;
          if (pane.gates.includes(0)) again();
        },
      },
      make("option", {}, "nothing"),
      make("option", {}, "its average"),
    );
    return make(
      "div",
      {className: "pane"},
      ...(several ? [make("strong", {}, pane.title)] : []),
      pane.canvas,
      ...(switches.length
        ? [
            make(
              "fieldset",
              {},
              make("legend", {}, "The paper's parts"),
              ...switches,
              make("label", {}, "off leaves", choice),
            ),
          ]
        : []),
    );
  }

  entry({name, colour, number}) {
    const share = make("span", {className: "small"});
    share.dataset.number = number;
    return make(
      "label",
      {},
      make("input", {
        type: "checkbox",
        checked: true,
        onchange: event => {
          this.off[event.target.checked ? "delete" : "add"](number);
          this.panes.forEach(pane => this.draw(pane, true));
        },
      }),
      make("span", {
        className: "swatch",
        style: this.single
          ? "background: linear-gradient(90deg, #db5757, #57db99, #5776db)"
          : `background: rgb(${colour})`,
      }),
      name,
      share,
    );
  }

  /* --- pictures --- */

  receive(stage) {
    const over = event => {
      event.preventDefault();
      stage.classList.toggle("drop", event.type === "dragover");
    };
    stage.ondragover = stage.ondragleave = over;
    stage.ondrop = event => {
      over(event);
      this.read(event.dataTransfer.files[0]);
    };
    this.live.onpointerdown = this.live.onfocusin = () => {
      Live.latest = this;
    };
    Live.latest ??= this;
    if (this.pasting) return;
    this.pasting = true;
    document.addEventListener("paste", event => {
      const picture = [...event.clipboardData.files].find(f =>
        f.type.startsWith("image/"),
      );
      if (picture && Live.latest === this) this.read(picture);
    });
  }

  async read(file) {
    if (!file) return;
    const picture = await createImageBitmap(file).catch(() => undefined);
    if (picture) await this.take(picture);
    else this.say(`${file.name || "This"} is no picture that the browser can read.`);
  }

  async film(stage) {
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({
        video: {facingMode: "environment"},
      });
    } catch {
      this.say("There is no camera, or the browser may not use it.");
      return;
    }
    const video = make("video", {srcObject: stream, playsInline: true, muted: true});
    const stop = () => {
      for (const track of stream.getTracks()) track.stop();
      box.remove();
      stage.hidden = false;
    };
    const box = make(
      "div",
      {className: "panes"},
      video,
      make(
        "div",
        {className: "row"},
        button("Take the picture", async () => {
          const picture = await createImageBitmap(video);
          stop();
          this.take(picture);
        }),
        button("Cancel", stop),
      ),
    );
    stage.hidden = true;
    stage.before(box);
    await video.play();
    box.querySelector("button").focus();
  }

  /* Another picture, from whatever can be drawn. */
  async take(picture) {
    for (const thumb of this.thumbs)
      thumb.setAttribute("aria-pressed", thumb.firstChild === picture);
    const wide = picture.naturalWidth ?? picture.width;
    const high = picture.naturalHeight ?? picture.height;
    const scale = Math.min(1, SIDE / Math.max(wide, high));
    this.photo = blank(
      Math.max(1, Math.round(wide * scale)),
      Math.max(1, Math.round(high * scale)),
    );
    const paint = this.photo.getContext("2d");
    paint.fillStyle = "white"; // behind what is transparent
    paint.fillRect(0, 0, this.photo.width, this.photo.height);
    paint.imageSmoothingQuality = "high";
    paint.drawImage(picture, 0, 0, this.photo.width, this.photo.height);
    for (const pane of this.panes) {
      pane.box = fit(this.photo, pane.manifest.frame);
      pane.image = pixels(this.photo, pane.box, pane.manifest);
      pane.canvas.width = this.photo.width;
      pane.canvas.height = this.photo.height;
      pane.stale = true;
      pane.result = pane.shares = pane.cursor = undefined;
      this.draw(pane);
    }
    this.probe.textContent = this.hint;
    await this.answer();
  }

  /* --- answers --- */

  /* Runs what is stale, one after the other; what changes meanwhile is run again. */
  async answer() {
    if (this.busy) return;
    this.busy = true;
    try {
      for (let pane; (pane = this.panes.find(one => one.stale));) {
        const {name, manifest, gates, fill, image} = pane;
        pane.stale = false;
        this.say("The network is running…");
        const shape = [1, manifest.channels, ...manifest.frame];
        const thing = manifest.output === "sigmoid" ? manifest.thing : -1;
        const result = await this.ask("run", {name, image, shape, gates, fill, thing});
        if (pane.stale) continue;
        pane.result = result;
        this.draw(pane, true);
      }
      this.busy = false;
      this.tell();
    } catch (error) {
      this.busy = false;
      this.fail(error);
    }
  }

  /* The picture under the answer; afresh: the answer or what is shown of it changed. */
  draw(pane, afresh = false) {
    const {canvas, box, manifest, result} = pane,
      [, width] = manifest.frame;
    if (result && afresh) {
      if (this.single)
        Object.assign(result, instances(result.probability, width, this.threshold));
      const values = this.single ? result.numbers : result.labels;
      const cover = new ImageData(width, values.length / width);
      const [colours, hidden] = this.single
        ? [
            [[], ...Array.from({length: result.count}, (_, k) => hue(k + 1))],
            k => !k || this.off.size,
          ]
        : [manifest.classes.map(one => one.colour), k => this.off.has(k)];
      const ink = colours.map(([r, g, b], k) =>
        hidden(k) ? 0 : (255 << 24) | (b << 16) | (g << 8) | r,
      );
      const painted = new Int32Array(cover.data.buffer);
      values.forEach((value, i) => {
        painted[i] = ink[value];
      });
      pane.cover = blank(cover.width, cover.height);
      pane.cover.getContext("2d").putImageData(cover, 0, 0);
      this.count(pane);
      this.tell();
    }
    const paint = canvas.getContext("2d");
    paint.globalAlpha = 1;
    paint.drawImage(this.photo, 0, 0);
    if (result) {
      paint.globalAlpha = this.opacity;
      paint.imageSmoothingEnabled = false;
      paint.drawImage(
        pane.cover,
        box.left,
        box.top,
        box.width,
        box.height,
        0,
        0,
        canvas.width,
        canvas.height,
      );
    }
    if (pane.cursor) {
      const [x, y] = pane.cursor,
        r = canvas.width / 60;
      paint.globalAlpha = 1;
      for (const [colour, line] of [
        ["white", 5],
        ["black", 2],
      ]) {
        paint.strokeStyle = colour;
        paint.lineWidth = (line * canvas.width) / 640;
        paint.beginPath();
        paint.arc(x, y, r, 0, 7);
        paint.stroke();
      }
    }
  }

  /* How much of the photo each class has, in each answer. */
  count(pane) {
    const inside = this.mask(pane),
      {classes, thing} = pane.manifest;
    const counts = classes.map(() => 0);
    for (const value of inside)
      if (!this.single) counts[value]++;
      else if (value) counts[thing]++;
    pane.shares = counts.map(count => count / inside.length);
    const answered = this.panes.filter(one => one.shares);
    for (const share of this.legend.querySelectorAll(".small"))
      share.textContent = answered
        .map(one => percent(one.shares[share.dataset.number]))
        .join(" / ");
  }

  /* What was found, in words. */
  tell() {
    if (this.busy || !this.panes.every(pane => pane.result)) return;
    const each = this.panes.map(({manifest, result, shares}, k) => {
      const who = this.panes.length > 1 ? `${"AB"[k]} in ` : "Answered in ";
      const time = `${who}${Math.round(result.milliseconds)} milliseconds`;
      if (this.single) return `${time}: ${result.count} instances`;
      const most = shares
        .map((share, k) => ({share, name: manifest.classes[k].name}))
        .sort((a, b) => b.share - a.share)
        .slice(0, 3);
      const words = most.map(one => `${one.name} ${percent(one.share)}`);
      return `${time}: ${words.join(", ")}`;
    });
    this.say(`${each.join("; ")}.`);
  }

  /* The answer over the photo alone, without the margin, at the frame's resolution or
     at that of the photo. */
  mask({box, result, manifest}, width = box.width, height = box.height) {
    const values = this.single ? result.numbers : result.labels;
    const mask = new values.constructor(width * height);
    for (let y = 0; y < height; y++) {
      const row = box.top + Math.floor(((y + 0.5) * box.height) / height);
      for (let x = 0; x < width; x++)
        mask[y * width + x] =
          values[
            row * manifest.frame[1] +
              box.left +
              Math.floor(((x + 0.5) * box.width) / width)
          ];
    }
    return mask;
  }

  async save(pane) {
    if (!pane.result) return;
    const {width, height} = this.photo;
    const palette = this.single ? undefined : pane.manifest.classes.map(c => c.colour);
    const file = await png(this.mask(pane, width, height), width, palette);
    const link = make("a", {
      href: URL.createObjectURL(file),
      download: `${pane.name}-mask.png`,
    });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  /* --- the pixel under the pointer or the cursor --- */

  point(pane, event) {
    const {width, height} = pane.canvas,
      shown = pane.canvas.getBoundingClientRect();
    this.name(
      [
        ((event.clientX - shown.left) * width) / shown.width,
        ((event.clientY - shown.top) * height) / shown.height,
      ],
      "off",
    );
  }

  step(pane, event) {
    const {width, height} = pane.canvas,
      far = event.shiftKey ? 1 : Math.ceil(width / 60);
    const move = {
      ArrowLeft: [-far, 0],
      ArrowRight: [far, 0],
      ArrowUp: [0, -far],
      ArrowDown: [0, far],
    }[event.key];
    if (!move) return;
    event.preventDefault();
    const [x, y] = pane.cursor ?? [width / 2, height / 2];
    const limit = (value, most) => Math.max(0, Math.min(most - 1, value));
    pane.cursor = [limit(x + move[0], width), limit(y + move[1], height)];
    this.draw(pane);
    this.name(pane.cursor, "polite");
  }

  name([x, y], live) {
    const {width, height} = this.photo;
    if (x < 0 || y < 0 || x >= width || y >= height) return;
    this.probe.setAttribute("aria-live", live); // a pointer would not stop talking
    this.probe.textContent = this.panes
      .filter(pane => pane.result)
      .map(pane => {
        const {box, manifest, result} = pane;
        const i =
          (box.top + Math.floor((y * box.height) / height)) * manifest.frame[1] +
          box.left +
          Math.floor((x * box.width) / width);
        const sure = result.probability[i].toFixed(2);
        const found = this.single
          ? `${manifest.classes[manifest.thing].name} ${sure}` +
            (result.numbers[i] ? `, number ${result.numbers[i]}` : "")
          : `${manifest.classes[result.labels[i]].name} ${sure}`;
        return this.panes.length > 1 ? `${pane.title[0]}: ${found}` : found;
      })
      .join(" · ");
  }
}

customElements.define("segbook-live", Live);
