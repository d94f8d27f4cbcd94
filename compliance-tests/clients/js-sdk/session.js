// One logged-in matrix-js-sdk client with Rust crypto in memory: what an Element Web tab is, without the page.
//
// It makes accounts and devices and starts their sync; it asserts nothing.

import * as sdk from "matrix-js-sdk";
import { decodeRecoveryKey } from "matrix-js-sdk/lib/crypto-api/index.js";

import { until } from "../lib/check.js";

/** The password of every account that these tests make. */
export const PASSWORD = "correct horse battery staple 7!";

/** A part of user IDs and room names that is new in each run, so that a run can share a server with earlier ones. */
export const RUN = Date.now().toString(36);

/** The flows and the session of a first `/register` call, made as clients do: without `auth`, to learn them. */
export async function registrationFlows(baseUrl, username) {
    const client = sdk.createClient({ baseUrl, logger: silent });
    try {
        await client.registerRequest({ username, password: PASSWORD });
    } catch (error) {
        if (error.httpStatus === 401) return error.data;
        throw error;
    }
    throw new Error("a registration without `auth` was accepted");
}

/** Registers `username` by the dummy stage and gives the reply. */
export async function register(baseUrl, username) {
    const { session } = await registrationFlows(baseUrl, username);
    return sdk.createClient({ baseUrl, logger: silent }).registerRequest({
        username,
        password: PASSWORD,
        initial_device_display_name: "js-sdk test",
        auth: { type: "m.login.dummy", session },
    });
}

/** A new device of an existing account, by password. */
export function login(baseUrl, username) {
    return sdk.createClient({ baseUrl, logger: silent }).loginRequest({
        type: "m.login.password",
        identifier: { type: "m.id.user", user: username },
        password: PASSWORD,
        initial_device_display_name: "js-sdk second device",
    });
}

/**
 * A client for what `register` or `login` answered, with an empty crypto store, synced once.
 *
 * `recoveryKey` opens the account's secret storage, as if the user had typed it in.
 */
export async function start(baseUrl, account, recoveryKey) {
    const secretStorage = { key: recoveryKey && decodeRecoveryKey(recoveryKey) };
    const client = sdk.createClient({
        baseUrl,
        accessToken: account.access_token,
        userId: account.user_id,
        deviceId: account.device_id,
        timelineSupport: true,
        logger: silent,
        verificationMethods: ["m.sas.v1"],
        cryptoCallbacks: {
            getSecretStorageKey: async ({ keys }) => [Object.keys(keys)[0], secretStorage.key],
            cacheSecretStorageKey: (_id, _info, key) => {
                secretStorage.key = key;
            },
        },
    });
    await client.initRustCrypto({ useIndexedDB: false });
    await client.startClient({ initialSyncLimit: 20, lazyLoadMembers: true, threadSupport: true, pollTimeout: 10_000 });
    await until(`${account.user_id} has synced`, () => client.isInitialSyncComplete());
    return client;
}

/** Answers user-interactive authentication with the password, if the server asks at all. */
export function withPassword(client) {
    return async (makeRequest) => {
        try {
            return await makeRequest(null);
        } catch (error) {
            if (error.httpStatus !== 401 || !error.data?.session) throw error;
            return makeRequest({
                type: "m.login.password",
                identifier: { type: "m.id.user", user: client.getSafeUserId() },
                password: PASSWORD,
                session: error.data.session,
            });
        }
    };
}

/** The event in `client`'s timeline, once it has come down `/sync` and, if it was encrypted, has been decrypted. */
export async function received(client, roomId, eventId) {
    const event = await until(`${client.getUserId()} has ${eventId}`, () =>
        client.getRoom(roomId)?.findEventById(eventId),
    );
    await client.decryptEventIfNeeded(event);
    await until(`${eventId} is decrypted`, () => !event.isBeingDecrypted() && !event.shouldAttemptDecryption());
    return event;
}

/** The room, once `client` sees itself in it with `membership`. */
export function inRoom(client, roomId, membership = "join") {
    return until(`${client.getUserId()} sees ${membership} in ${roomId}`, () => {
        const room = client.getRoom(roomId);
        return room?.getMyMembership() === membership ? room : undefined;
    });
}

const nothing = () => {};
const silent = {
    trace: nothing,
    debug: nothing,
    info: nothing,
    warn: nothing,
    error: nothing,
    getChild: () => silent,
};
