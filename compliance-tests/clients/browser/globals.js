// Node's globals that matrix-react-sdk and its dependencies expect: webpack provides them, esbuild injects this file.
export { Buffer } from "buffer";
export const process = { env: {}, browser: true, version: "", nextTick: queueMicrotask };
