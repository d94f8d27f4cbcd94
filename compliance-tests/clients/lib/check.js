// Named checks for the client tests: run one after another, each with a deadline, each printed as one line.
//
// No test framework, because a check here is a step in one long conversation between real clients: the order matters,
// and what one step made (a room, an event) the next one uses. A step whose predecessor failed fails too, and says so.
// Lines are read by summary.py: `ok SUITE: NAME (MS ms)` or `FAIL SUITE: NAME: REASON`.

/** How long one check may take unless it says otherwise. */
const CHECK_MS_MAX = 60_000;
/** How long `until` waits for a condition unless told otherwise. */
const UNTIL_MS_MAX = 15_000;
/** How often `until` looks. */
const UNTIL_MS_EVERY = 20;

export class Suite {
    constructor(name) {
        this.name = name;
        this.passed = 0;
        this.failed = 0;
    }

    /** Runs `body`; true if it returned in time without throwing. */
    async check(name, body, msMax = CHECK_MS_MAX) {
        const started = performance.now();
        try {
            await within(msMax, `not finished after ${msMax} ms`, Promise.resolve().then(body));
            this.passed += 1;
            process.stdout.write(`ok ${this.name}: ${name} (${Math.round(performance.now() - started)} ms)\n`);
            return true;
        } catch (error) {
            this.failed += 1;
            process.stdout.write(`FAIL ${this.name}: ${name}: ${oneLine(error)}\n`);
            return false;
        }
    }

    /** Prints the closing line and gives the process's exit code. */
    close() {
        process.stdout.write(`${this.name}: ${this.passed} passed, ${this.failed} failed\n`);
        return this.failed === 0 ? 0 : 1;
    }
}

/** Waits until `condition` gives something truthy, and returns that; throws with `what` at the deadline. */
export async function until(what, condition, msMax = UNTIL_MS_MAX) {
    const deadline = performance.now() + msMax;
    for (;;) {
        const value = await condition();
        if (value) return value;
        if (performance.now() > deadline) throw new Error(`after ${msMax} ms still not so: ${what}`);
        await new Promise((wake) => setTimeout(wake, UNTIL_MS_EVERY));
    }
}

/** `promise`, or an error with `message` after `ms`. */
export async function within(ms, message, promise) {
    let timer;
    const late = new Promise((_, reject) => {
        timer = setTimeout(() => reject(new Error(message)), ms);
    });
    try {
        return await Promise.race([promise, late]);
    } finally {
        clearTimeout(timer);
    }
}

/** Runs `body`, which must reject, and returns the error. */
export async function rejection(what, body) {
    let value;
    try {
        value = await body();
    } catch (error) {
        return error;
    }
    throw new Error(`${what} was expected to be refused, and gave ${JSON.stringify(value)}`);
}

/** A value made by an earlier check, or an error that names it. */
export function made(what, value) {
    if (value === undefined || value === null) throw new Error(`an earlier check did not make ${what}`);
    return value;
}

function oneLine(error) {
    const text = error instanceof Error ? error.message || error.name : String(error);
    return text.replaceAll(/\s+/g, " ").slice(0, 400);
}
