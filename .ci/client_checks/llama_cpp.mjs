// What llama.cpp writes, through node-llama-cpp, which brings it as a binary: nothing is compiled.
// Arguments: directory of node_modules, GGUF file, expected.json. Output: one line of JSON.
import {readFileSync} from "node:fs";
import {pathToFileURL} from "node:url";

const [modules, modelPath, expectedPath] = process.argv.slice(2);
const library = pathToFileURL(`${modules}/node-llama-cpp/dist/index.js`);
const {getLlama} = await import(library);
const expected = JSON.parse(readFileSync(expectedPath, "utf-8"));

const llama = await getLlama({gpu: false, build: "never", skipDownload: true, logLevel: "error"});
const model = await llama.loadModel({modelPath});
const context = await model.createContext({contextSize: 128});
const sequence = context.getSequence();
const [tokens, nll] = [[], []];
for (const prompt of expected.prompts) {
    await sequence.clearHistory();
    const [ids, logProbs] = [[], []];
    const options = {temperature: 0, yieldEogToken: true};
    const written = sequence.evaluateWithMetadata(prompt, {confidence: true}, options);
    for await (const {token, confidence} of written) {
        ids.push(token);
        logProbs.push(Math.log(confidence));
        if (ids.length === expected.n_new) break;
    }
    tokens.push(ids);
    nll.push(-logProbs.reduce((sum, value) => sum + value, 0) / ids.length);
}
const prompts = expected.texts.map((text) => model.tokenize(text));
console.log(JSON.stringify({tokens, nll, prompts}));
process.exit(0);
