/* Runs the networks of a page, apart from it: onnxruntime-web, on one thread. */
let ort;
const sessions = new Map();

/* A file of which the hash is known, as bytes; one of the reader's has a name, too. */
const get = async ({url, file, integrity}) => {
  let answer;
  try {
    answer = await fetch(url, {integrity});
  } catch {
    throw new Error(await reason(url, file));
  }
  if (!answer.ok) throw new Error(`${url} could not be fetched (${answer.status}).`);
  return new Uint8Array(await answer.arrayBuffer());
};

/* Browsers do not tell a wrong hash from a cut network. */
const reason = async (url, file) => {
  if (url.startsWith("blob:"))
    return (
      `${file} is not the file that the manifest names: its hash is another. It was ` +
      "not used."
    );
  const there = await fetch(url, {method: "HEAD", cache: "no-store"}).catch(() => ({}));
  return there.ok
    ? `${url} is not the file that belongs to this book: its hash is another. It was ` +
        "not used."
    : `${url} could not be fetched: is there a network?`;
};

const start = async runtime => {
  const [code, wasm] = await Promise.all([get(runtime.module), get(runtime.wasm)]);
  const url = URL.createObjectURL(new Blob([code], {type: "text/javascript"}));
  ort = await import(url);
  URL.revokeObjectURL(url);
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = wasm;
};

const load = async ({name, graph, weights, runtime}) => {
  const [model, data] = await Promise.all([
    get(graph),
    get(weights),
    ort || start(runtime),
  ]);
  const externalData = [{path: weights.file, data}];
  const options = {executionProviders: ["wasm"], externalData};
  const session = await ort.InferenceSession.create(model, options);
  await sessions.get(name)?.release();
  sessions.set(name, session);
};

/* image: (C * H * W) bytes -> the most probable class of each pixel and its
   probability; for one class with instances, its probability alone. */
const run = async ({name, image, shape, gates, fill, thing}) => {
  const feeds = {image: new ort.Tensor("uint8", image, shape)};
  if (gates.length) {
    feeds.gates = new ort.Tensor("float32", Float32Array.from(gates), [gates.length]);
    feeds.fill = new ort.Tensor("float32", Float32Array.of(fill), [1]);
  }
  const begin = performance.now();
  const {logits} = await sessions.get(name).run(feeds);
  const milliseconds = performance.now() - begin;
  const [, classes] = logits.dims,
    values = logits.data;
  const size = values.length / classes,
    labels = new Uint8Array(size);
  const probability = new Float32Array(size);
  for (let i = 0; i < size; i++) {
    let best = 0,
      sum = 0;
    for (let k = 1; k < classes; k++)
      if (values[k * size + i] > values[best * size + i]) best = k;
    const chosen = thing < 0 ? best : Math.min(thing, classes - 1);
    const level = values[chosen * size + i];
    for (let k = 0; k < classes; k++) sum += Math.exp(values[k * size + i] - level);
    labels[i] = best;
    probability[i] = 1 / (classes === 1 ? 1 + Math.exp(-level) : sum);
  }
  logits.dispose();
  return {labels, probability, milliseconds};
};

const actions = {load, run};
onmessage = async ({data}) => {
  try {
    const result = (await actions[data.action](data)) ?? {};
    const moved = Object.values(result)
      .filter(ArrayBuffer.isView)
      .map(v => v.buffer);
    postMessage({id: data.id, result}, moved);
  } catch (error) {
    // The runtime throws numbers, too, when its memory is full.
    postMessage({id: data.id, error: error?.message ?? `error ${error}`});
  }
};
