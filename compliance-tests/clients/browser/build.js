// Bundles Element Web's user interface (npm's matrix-react-sdk) with the small shell in shell.tsx: `node build.js OUT`.
//
// Element Web itself is in no registry that this project uses; matrix-react-sdk, up to 3.114.0, is the same code
// without the outermost page. What its own build does with webpack is done here with esbuild and postcss. Only icons
// in style sheets are left out: the layout matters to a timeline that scrolls, the pictures on buttons do not.

import { cp, mkdir, readFile, writeFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";
import postcss from "postcss";
import easings from "postcss-easings";
import hexrgba from "postcss-hexrgba";
import imports from "postcss-import";
import mixins from "postcss-mixins";
import nested from "postcss-nested";
import scss from "postcss-scss";
import simpleVars from "postcss-simple-vars";

const here = path.dirname(fileURLToPath(import.meta.url));
const sdk = path.join(here, "node_modules", "matrix-react-sdk");
const out = process.argv[2];
if (!out) throw new Error("usage: node build.js OUT");

/** Pictures: the default export is a URL, `Icon` a component, as webpack's two loaders give them. */
const pictures = {
    name: "pictures",
    setup(context) {
        context.onLoad({ filter: /\.svg$/ }, async ({ path: file }) => {
            const url = `data:image/svg+xml;base64,${(await readFile(file)).toString("base64")}`;
            return {
                loader: "jsx",
                resolveDir: here,
                contents: `import React from "react";
                    export default ${JSON.stringify(url)};
                    export const Icon = (props) => <img alt="" src=${JSON.stringify(url)} className={props.className} />;`,
            };
        });
    },
};

/** The paths that only webpack knows. */
const webpackPaths = {
    name: "webpack-paths",
    setup(context) {
        context.onResolve({ filter: /^\$webapp\/i18n\/languages\.json$/ }, () => ({ path: "languages", namespace: "url" }));
        context.onLoad({ filter: /.*/, namespace: "url" }, () => ({ contents: 'export default "i18n/languages.json";' }));
        context.onResolve({ filter: /^!!raw-loader!/ }, () => ({ path: "raw", namespace: "empty" }));
        // Voice recording: webpack gives the addresses of these scripts; run as part of the page they would throw.
        context.onResolve({ filter: /^opus-recorder\/dist\/\w+\.min\.(js|wasm)$|\/RecorderWorklet$/ }, () => ({
            path: "recording",
            namespace: "empty",
        }));
        context.onResolve({ filter: /^(fs|path|url|crypto)$/ }, () => ({ path: "node", namespace: "empty" }));
        context.onLoad({ filter: /.*/, namespace: "empty" }, () => ({ contents: 'export default "";' }));
        context.onLoad({ filter: /[\\/]workers[\\/]\w+Factory\.ts$/ }, async ({ path: file }) => ({
            loader: "ts",
            contents: (await readFile(file, "utf8")).replace(
                /new URL\("\.\/([\w.]+)\.ts", import\.meta\.url\)/,
                '"$1.js"',
            ),
        }));
    },
};

const options = {
    bundle: true,
    outdir: out,
    format: "iife",
    target: "chrome120",
    logLevel: "error",
    define: { "process.env.NODE_ENV": '"production"', "process.env.VERSION": '"test"', "global": "globalThis" },
    inject: [path.join(here, "globals.js")],
    loader: {
        ".png": "dataurl",
        ".gif": "dataurl",
        ".ogg": "dataurl",
        ".mp3": "dataurl",
        ".woff2": "dataurl",
        ".css": "css",
    },
    plugins: [pictures, webpackPaths],
};

await mkdir(path.join(out, "i18n"), { recursive: true });
await build({ ...options, entryPoints: [path.join(here, "shell.tsx")] });
for (const worker of ["indexeddb.worker", "blurhash.worker", "playback.worker"]) {
    await build({ ...options, entryPoints: [path.join(sdk, "src", "workers", `${worker}.ts`)] });
}
await cp(path.join(sdk, "src", "i18n", "strings", "en_EN.json"), path.join(out, "i18n", "en.json"));
await writeFile(path.join(out, "i18n", "languages.json"), JSON.stringify({ en: "en.json" }));
const light = path.join(sdk, "res", "themes", "light", "css", "light.pcss");
const theme = await postcss([imports(), mixins(), simpleVars(), nested(), easings(), hexrgba()]).process(
    await readFile(light, "utf8"),
    { from: light, parser: scss },
);
await writeFile(path.join(out, "theme.css"), theme.css.replaceAll(/url\((?!["']?data:)[^)]*\)/g, "none"));
await cp(path.join(here, "index.html"), path.join(out, "index.html"));
