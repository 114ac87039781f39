// Run by llama_cpp.py, in the folder that node-llama-cpp is installed in.
// Standard input: {model, sequences: [[id]], texts: [string]}; the last line of standard output:
// {release, top: [[id]], tokens: [[id]]}, the likeliest next token behind every token of a sequence.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const index = join(process.cwd(), "node_modules", "node-llama-cpp", "dist", "index.js");
const { getLlama, LlamaLogLevel } = await import(pathToFileURL(index));

const asked = JSON.parse(readFileSync(0, "utf8"));
const llama = await getLlama({ gpu: false, build: "never", progressLogs: false, logLevel: LlamaLogLevel.error });
const model = await llama.loadModel({ modelPath: asked.model });
const length = Math.max(...asked.sequences.map((ids) => ids.length));
// Several threads wait for each other by spinning: where cores are shared, twenty times as slow as one.
const context = await model.createContext({ contextSize: length + 1, threads: 1 });
const sequence = context.getSequence();
const next = { generateNext: { token: true, options: { temperature: 0 } } };
const top = [];
for (const ids of asked.sequences) {
  await sequence.clearHistory();
  const found = await sequence.controlledEvaluate(ids.map((id) => [id, next]));
  top.push(found.map((each) => each.next.token));
}
const tokens = asked.texts.map((text) => model.tokenize(text));
console.log(JSON.stringify({ release: llama.llamaCppRelease.release, top, tokens }));
process.exit(0);
