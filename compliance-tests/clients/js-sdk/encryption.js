// End-to-end encryption between two js-sdk clients: cross-signing, an encrypted room, SAS, key backup.

import assert from "node:assert/strict";

import { Method, Preset } from "matrix-js-sdk";
import {
    CryptoEvent,
    EventShieldColour,
    VerificationPhase,
} from "matrix-js-sdk/lib/crypto-api/index.js";
import { RustBackupManager } from "matrix-js-sdk/lib/rust-crypto/backup.js";

import { made, until, within } from "../lib/check.js";
import { inRoom, login, received, RUN, start, withPassword } from "./session.js";

// The SDK waits up to 10 s before it uploads keys, at random; its own tests shorten that too.
RustBackupManager.maxBackupLoopStartDelayMillis = 100;

/**
 * Uses `world.alice` and `world.bob`; makes `world.secretRoom` (an encrypted room with both in it), and makes
 * `world.alice` her second device: the first one is stopped, and a stopped client cannot start again.
 */
export async function encryptionChecks(suite, world) {
    const { alice, bob, baseUrl } = world;
    let recovery;
    let oldMessage;

    await suite.check("both users publish cross-signing keys, and each can see the other's", async () => {
        for (const client of [alice, bob]) {
            await client.getCrypto().bootstrapCrossSigning({ authUploadDeviceSigningKeys: withPassword(client) });
            assert.equal(await client.getCrypto().isCrossSigningReady(), true);
        }
        for (const [client, other] of [[alice, bob], [bob, alice]]) {
            assert.equal(await client.getCrypto().userHasCrossSigningKeys(other.getUserId(), true), true);
            const devices = await client.getCrypto().getUserDeviceInfo([other.getUserId()], true);
            assert.deepEqual([...devices.get(other.getUserId()).keys()], [other.getDeviceId()]);
        }
    });

    await suite.check("secret storage and a key backup are set up", async () => {
        const crypto = alice.getCrypto();
        recovery = await crypto.createRecoveryKeyFromPassphrase();
        await crypto.bootstrapSecretStorage({
            createSecretStorageKey: async () => recovery,
            setupNewSecretStorage: true,
            setupNewKeyBackup: true,
        });
        assert.equal(await crypto.isSecretStorageReady(), true);
        assert.ok(await crypto.getActiveSessionBackupVersion(), "the backup is in use");
        assert.ok((await alice.isKeyBackupKeyStored()) !== null, "its key is in secret storage");
    });

    await suite.check("an encrypted room is made, and the invited user joins it", async () => {
        const { room_id: roomId } = await alice.createRoom({
            name: `Secrets ${RUN}`,
            preset: Preset.TrustedPrivateChat,
            is_direct: true,
            invite: [bob.getUserId()],
            initial_state: [
                { type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } },
            ],
        });
        const invited = await inRoom(bob, roomId, "invite");
        assert.equal(invited.getDMInviter(), alice.getUserId());
        await bob.joinRoom(roomId);
        await inRoom(bob, roomId);
        for (const client of [alice, bob]) {
            await until("both are members", () => client.getRoom(roomId).getJoinedMemberCount() === 2);
            assert.equal(await client.getCrypto().isEncryptionEnabledInRoom(roomId), true);
        }
        world.secretRoom = roomId;
    });

    await suite.check("an encrypted message is decrypted, one way and the other", async () => {
        const roomId = made("the encrypted room", world.secretRoom);
        for (const [from, to, body] of [[alice, bob, "over the hill"], [bob, alice, "and far away"]]) {
            const { event_id: eventId } = await from.sendTextMessage(roomId, body);
            const event = await received(to, roomId, eventId);
            assert.equal(event.getWireType(), "m.room.encrypted");
            assert.equal(event.isDecryptionFailure(), false, `${event.decryptionFailureReason}`);
            assert.equal(event.getContent().body, body);
            assert.equal("body" in event.getWireContent(), false, "the server has seen no body");
            if (from === alice) oldMessage = eventId;
        }
    });

    await suite.check("the two verify each other by short authentication string", async () => {
        const roomId = made("the encrypted room", world.secretRoom);
        let request;
        bob.once(CryptoEvent.VerificationRequestReceived, (received) => {
            request = received;
        });
        const outgoing = await alice.getCrypto().requestVerificationDM(bob.getUserId(), roomId);
        await until("bob has the request", () => request);
        assert.equal(request.otherUserId, alice.getUserId());
        await request.accept();
        await until("the request is ready", () => outgoing.phase === VerificationPhase.Ready);
        const verifiers = [
            await outgoing.startVerification("m.sas.v1"),
            await until("bob's side has started", () => request.verifier),
        ];
        const ends = verifiers.map((verifier) => verifier.verify());
        const shown = [];
        for (const verifier of verifiers) {
            shown.push(await until("the emoji are shown", () => verifier.getShowSasCallbacks()));
        }
        assert.deepEqual(shown[0].sas.emoji, shown[1].sas.emoji);
        assert.equal(shown[0].sas.emoji.length, 7);
        await Promise.all(shown.map((sas) => sas.confirm()));
        await within(30_000, "confirmed, and not done after 30 s", Promise.all(ends));
        for (const [client, other] of [[alice, bob], [bob, alice]]) {
            await until(`${client.getUserId()} trusts ${other.getUserId()}`, async () =>
                (await client.getCrypto().getUserVerificationStatus(other.getUserId())).isCrossSigningVerified(),
            );
        }
    });

    await suite.check("a message between verified users carries no warning", async () => {
        const roomId = made("the encrypted room", world.secretRoom);
        for (const [from, to] of [[alice, bob], [bob, alice]]) {
            const { event_id: eventId } = await from.sendTextMessage(roomId, "verified");
            const info = await to.getCrypto().getEncryptionInfoForEvent(await received(to, roomId, eventId));
            assert.equal(info.shieldColour, EventShieldColour.NONE, `the reason is ${info.shieldReason}`);
        }
    });

    await suite.check("room keys reach the backup", async () => {
        // Asked of the server each time: the SDK's own call answers from its cache.
        await until("the backup holds keys", async () => {
            const backup = await alice.http.authedRequest(Method.Get, "/room_keys/version");
            assert.equal(backup.version, await alice.getCrypto().getActiveSessionBackupVersion());
            return backup.count > 0;
        });
    });

    await suite.check("a second device restores the backup and reads the old message", async () => {
        const roomId = made("the encrypted room", world.secretRoom);
        const eventId = made("the old message", oldMessage);
        const account = await login(baseUrl, alice.getUserId());
        assert.notEqual(account.device_id, alice.getDeviceId());
        // The first device is quiet meanwhile: the key must come from the backup and not be forwarded.
        alice.stopClient();
        const again = await start(baseUrl, account, made("the recovery key", recovery?.encodedPrivateKey));
        world.alice = again;
        const old = await until("the old message is there", async () => {
            const room = again.getRoom(roomId);
            if (room && !room.findEventById(eventId)) await again.scrollback(room, 30);
            return room?.findEventById(eventId);
        });
        await until("it cannot be read yet", () => old.isDecryptionFailure());

        const crypto = again.getCrypto();
        assert.equal(await crypto.userHasCrossSigningKeys(again.getUserId(), true), true);
        await crypto.bootstrapCrossSigning({ authUploadDeviceSigningKeys: withPassword(again) });
        await crypto.loadSessionBackupPrivateKeyFromSecretStorage();
        const check = await crypto.checkKeyBackupAndEnable();
        assert.equal(check.trustInfo.matchesDecryptionKey, true);
        const restored = await crypto.restoreKeyBackup();
        assert.ok(restored.imported > 0, `imported ${restored.imported} of ${restored.total} keys`);
        await until("it is read", () => !old.isDecryptionFailure() && old.getContent().body === "over the hill");
    });

    await suite.check("the other user sees the second device as cross-signed, and writes to it", async () => {
        const roomId = made("the encrypted room", world.secretRoom);
        const again = world.alice;
        assert.notEqual(again, alice, "the check before this one starts a second device");
        await until("bob sees it signed", async () => {
            const status = await bob
                .getCrypto()
                .getDeviceVerificationStatus(alice.getUserId(), again.getDeviceId());
            return status?.crossSigningVerified;
        });
        const { event_id: eventId } = await bob.sendTextMessage(roomId, "to both of you");
        const event = await received(again, roomId, eventId);
        assert.equal(event.getContent().body, "to both of you");
    });

    await suite.check("a dehydrated device takes keys meanwhile, and the next device gets them from it", async () => {
        assert.equal(await world.alice.getCrypto().isDehydrationSupported(), true);
        await world.alice.getCrypto().startDehydration();
        const { device_id: dehydrated } = await world.alice.http.authedRequest(
            Method.Get,
            "/dehydrated_device",
            undefined,
            undefined,
            { prefix: "/_matrix/client/unstable/org.matrix.msc3814.v1" },
        );
        const { room_id: roomId } = await bob.createRoom({
            preset: Preset.TrustedPrivateChat,
            invite: [alice.getUserId()],
            initial_state: [
                { type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } },
            ],
        });
        await inRoom(bob, roomId);
        await world.alice.joinRoom(roomId);
        await until("bob sees her in the room", () => bob.getRoom(roomId).getJoinedMemberCount() === 2);
        await until("bob sees the dehydrated device", async () =>
            (await bob.getCrypto().getUserDeviceInfo([alice.getUserId()], true)).get(alice.getUserId()).has(dehydrated));
        world.alice.stopClient();
        const { event_id: eventId } = await bob.sendTextMessage(roomId, "for the one who sleeps");

        const account = await login(baseUrl, alice.getUserId());
        const again = await start(baseUrl, account, made("the recovery key", recovery?.encodedPrivateKey));
        world.alice = again;
        const crypto = again.getCrypto();
        assert.equal(await crypto.userHasCrossSigningKeys(again.getUserId(), true), true);
        await crypto.bootstrapCrossSigning({ authUploadDeviceSigningKeys: withPassword(again) });
        let keys = 0;
        again.on(CryptoEvent.RehydrationProgress, (roomKeyCount) => {
            keys = roomKeyCount;
        });
        await crypto.startDehydration();
        assert.ok(keys > 0, "the dehydrated device held room keys");
        await until("the message is read", async () => {
            const event = again.getRoom(roomId)?.findEventById(eventId);
            return event && !event.isDecryptionFailure() && event.getContent().body === "for the one who sleeps";
        });
    });
    if (!world.alice.clientRunning) world.alice = await start(baseUrl, await login(baseUrl, alice.getUserId()));
}
