// Node's own clients: http, http2 and fetch, and the package `ws` where it is installed.
// Arguments: the URL in clear, the URL over TLS, and `events` if the event path is judged there.
// Prints `NAME: ok`, or `NAME:` and what is wrong.
'use strict';
const assert = require('node:assert');
const crypto = require('node:crypto');
const fs = require('node:fs');
const http = require('node:http');
const http2 = require('node:http2');
const https = require('node:https');
const { once } = require('node:events');
const { Readable } = require('node:stream');

const [clear, tls, judged] = process.argv.slice(2);
const ca = fs.readFileSync(process.env.CERTIFICATE);
const EVENT = '/v1/event/?_a=62515&_n=a&q=%22';
const large = Buffer.alloc(50_000_000, 'a block that is repeated');
const sha256 = (bytes) => crypto.createHash('sha256').update(bytes).digest('hex');
const checks = [];
const check = (name, run) => checks.push([name, run]);

async function body(stream) {
    const pieces = [];
    for await (const piece of stream) pieces.push(piece);
    return Buffer.concat(pieces);
}

function assertEchoed(answer, bytes) {
    const { length, sha256: digest } = JSON.parse(answer);
    assert.deepStrictEqual([length, digest], [bytes.length, sha256(bytes)]);
}

// The trailers of a call of gRPC.
function assertStatus(trailers) {
    assert.ok(trailers, 'no trailers');
    const { 'grpc-status': status, 'grpc-message': message } = trailers;
    assert.deepStrictEqual([status, message], ['0', 'well']);
}

// Over HTTP/1, in clear and over TLS.
for (const [base, client] of [[clear, http], [tls, https]]) {
    const agent = new client.Agent({ keepAlive: true, maxSockets: 4, ca });
    const name = (what) => `${client === http ? 'http' : 'https'}, ${what}`;
    const start = (path, options = {}) => client.request(base + path, { agent, ...options });
    const ask = async (path, options) => {
        const request = start(path, options).end();
        const [response] = await once(request, 'response');
        return [response, await body(response)];
    };
    if (judged) {
        check(name('events'), async () => {
            for (let n = 0; n < 50; n += 1) {
                const [response, pixel] = await ask(EVENT);
                assert.strictEqual(response.headers['x-event-verdict'], 'accepted');
                assert.strictEqual(pixel.length, 43);
            }
        });
    }
    check(name('a chunked upload'), async () => {
        const pieces = [large.subarray(0, 100_000), Buffer.from('end')];
        const request = start('/echo', { method: 'POST' });
        Readable.from(pieces).pipe(request);
        const [response] = await once(request, 'response');
        assertEchoed(await body(response), Buffer.concat(pieces));
    });
    check(name('100-continue'), async () => {
        const headers = { expect: '100-continue', 'content-length': 5 };
        const request = start('/echo', { method: 'PUT', headers });
        request.flushHeaders();
        await once(request, 'continue');
        request.end('hello');
        const [response] = await once(request, 'response');
        assertEchoed(await body(response), Buffer.from('hello'));
    });
    check(name('early hints'), async () => {
        const request = start('/hints').end();
        const [[hints], [response]] =
            await Promise.all([once(request, 'information'), once(request, 'response')]);
        assert.strictEqual(hints.statusCode, 103);
        assert.match(hints.headers.link, /a\.css/);
        assert.strictEqual(String(await body(response)), 'page');
    });
    check(name('trailers'), async () => {
        const request = start('/grpc', { method: 'POST' }).end('call');
        const [response] = await once(request, 'response');
        assert.strictEqual(String(await body(response)), 'call');
        assertStatus(response.trailers);
    });
    check(name('trailers of an upload'), async () => {
        const request = start('/trailers', { method: 'POST', headers: { trailer: 'x-sum' } });
        request.write('hello');
        request.addTrailers({ 'x-sum': '1' });
        const [response] = await once(request.end(), 'response');
        assert.strictEqual(String(await body(response)), '{"x-sum":"1"}');
    });
    check(name('HEAD and Range'), async () => {
        const [head, none] = await ask('/range', { method: 'HEAD' });
        assert.deepStrictEqual([head.headers['content-length'], none.length], ['100', 0]);
        const [part, bytes] = await ask('/range', { headers: { range: 'bytes=5-9' } });
        assert.deepStrictEqual([part.statusCode, String(bytes)], [206, '56789']);
        assert.strictEqual(part.headers['content-range'], 'bytes 5-9/100');
    });
    check(name('server-sent events'), async () => {
        const call = `?node-${client === http}`;
        const [response] = await once(start(`/events${call}`).end(), 'response');
        let seen = '';
        for await (const piece of response) {
            seen += piece;
            if (!seen.includes('data: 3')) await ask(`/next${call}`);
        }
        assert.match(seen, /data: 1\n\ndata: 2\n\ndata: 3\n\n$/);
    });
    check(name('50 MB up and down'), async () => {
        const headers = { 'content-length': large.length };
        const request = start('/echo', { method: 'PUT', headers }).end(large);
        const [response] = await once(request, 'response');
        assertEchoed(await body(response), large);
        const [down, bytes] = await ask('/large');
        assert.strictEqual(sha256(bytes), down.headers['x-sha256']);
    });
}

// Over HTTP/2, in clear with prior knowledge and over TLS.
for (const [base, kind] of [[clear, 'http2 in clear'], [tls, 'http2']]) {
    let session;
    const name = (what) => `${kind}, ${what}`;
    const start = (path, headers = {}, options = {}) => {
        session ??= http2.connect(base, { ca });
        return session.request({ ':path': path, ...headers }, options);
    };
    const ask = async (path, headers) => {
        const stream = start(path, headers);
        const [response] = await once(stream, 'response');
        return [response, await body(stream)];
    };
    if (judged) {
        check(name('events'), async () => {
            const all = await Promise.all(Array.from({ length: 90 }, () => ask(EVENT)));
            for (const [response, pixel] of all) {
                assert.strictEqual(response['x-event-verdict'], 'accepted');
                assert.strictEqual(pixel.length, 43);
            }
        });
    }
    check(name('uploads that end in an empty frame'), async () => {
        for (let n = 0; n < 20; n += 1) {
            const stream = start('/echo', { ':method': 'POST' });
            stream.write('hello');
            await new Promise(setImmediate);
            stream.end();
            await once(stream, 'response');
            assertEchoed(await body(stream), Buffer.from('hello'));
        }
    });
    check(name('early hints'), async () => {
        const stream = start('/hints');
        const [[hints], [response]] =
            await Promise.all([once(stream, 'headers'), once(stream, 'response')]);
        assert.deepStrictEqual([hints[':status'], response[':status']], [103, 200]);
        assert.match(hints.link, /a\.css/);
        assert.strictEqual(String(await body(stream)), 'page');
    });
    check(name('trailers'), async () => {
        const headers = { ':method': 'POST', te: 'trailers', 'content-type': 'application/grpc' };
        const stream = start('/grpc', headers).end('call');
        let trailers;
        stream.on('trailers', (received) => { trailers = received; });
        const [response] = await once(stream, 'response');
        assert.strictEqual(response['content-type'], 'application/grpc');
        assert.strictEqual(String(await body(stream)), 'call');
        assertStatus(trailers);
    });
    check(name('trailers of an upload'), async () => {
        const stream = start('/trailers', { ':method': 'POST' }, { waitForTrailers: true });
        stream.on('wantTrailers', () => stream.sendTrailers({ 'x-sum': '1' }));
        stream.end('hello');
        await once(stream, 'response');
        assert.strictEqual(String(await body(stream)), '{"x-sum":"1"}');
    });
    check(name('HEAD and Range'), async () => {
        const [head, none] = await ask('/range', { ':method': 'HEAD' });
        assert.deepStrictEqual([head['content-length'], none.length], ['100', 0]);
        const [part, bytes] = await ask('/range', { range: 'bytes=5-9' });
        assert.deepStrictEqual([part[':status'], String(bytes)], [206, '56789']);
    });
    check(name('server-sent events'), async () => {
        const call = `?${kind.replaceAll(' ', '-')}`;
        const stream = start(`/events${call}`);
        let seen = '';
        for await (const piece of stream) {
            seen += piece;
            if (!seen.includes('data: 3')) await ask(`/next${call}`);
        }
        assert.match(seen, /data: 1\n\ndata: 2\n\ndata: 3\n\n$/);
    });
    check(name('50 MB up and down'), async () => {
        const stream = start('/echo', { ':method': 'PUT' }).end(large);
        await once(stream, 'response');
        assertEchoed(await body(stream), large);
        const [down, bytes] = await ask('/large');
        assert.strictEqual(sha256(bytes), down['x-sha256']);
    });
    check(name('the end of the session'), async () => {
        session.close();
        await once(session, 'close');
    });
}

if (judged) {
    check('fetch, an event', async () => {
        const response = await fetch(clear + EVENT, { headers: { accept: 'application/json' } });
        assert.strictEqual(response.headers.get('x-event-verdict'), 'accepted');
        const refused = await fetch(`${clear}/v1/event/?_a=1&_n=a`, {
            headers: { accept: 'application/json' },
        });
        assert.strictEqual((await refused.json()).reason, 'portal_not_allowed');
    });
}
check('fetch, a streamed upload', async () => {
    const stream = Readable.toWeb(Readable.from([Buffer.from('hel'), Buffer.from('lo')]));
    const response = await fetch(`${clear}/echo`, { method: 'POST', body: stream, duplex: 'half' });
    assertEchoed(await response.text(), Buffer.from('hello'));
});

let WebSocket;
try {
    ({ WebSocket } = require('ws'));
} catch (error) {
    if (error.code !== 'MODULE_NOT_FOUND') throw error;
}
if (WebSocket) {
    for (const base of [clear, tls]) {
        check(`ws over ${base === clear ? 'http' : 'https'}`, async () => {
            // One after another: each has a connection to the origin of its own.
            for (let n = 0; n < 20; n += 1) {
                const socket = new WebSocket(base.replace('http', 'ws') + '/socket', { ca });
                await once(socket, 'open');
                for (const size of [0, 1, 125, 126, 70_000]) {
                    socket.send(large.subarray(0, size));
                    const [answer] = await once(socket, 'message');
                    assert.ok(answer.equals(large.subarray(0, size)), `${size} bytes`);
                }
                socket.close(1000);
                const [code] = await once(socket, 'close');
                assert.strictEqual(code, 1000);
            }
        });
    }
} else {
    console.log('ws: left out');
}

(async () => {
    for (const [name, run] of checks) {
        const limit = new Promise((_, reject) => {
            setTimeout(() => reject(new Error('no end')), 60_000).unref();
        });
        try {
            await Promise.race([run(), limit]);
            console.log(`${name}: ok`);
        } catch (error) {
            console.log(`${name}: ${String(error.message).replaceAll('\n', ' ')}`);
        }
    }
    process.exit();
})();
