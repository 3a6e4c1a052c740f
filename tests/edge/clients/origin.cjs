// An origin with a page for each feature of HTTP that clients use. Prints its port, then serves
// until it is killed.
'use strict';
const crypto = require('node:crypto');
const http = require('node:http');
const { EventEmitter } = require('node:events');

const sha256 = (bytes) => crypto.createHash('sha256').update(bytes).digest('hex');
const large = crypto.createHash('shake256', { outputLength: 50_000_000 }).update('seed').digest();
const text = Buffer.from('0123456789'.repeat(10));
const asked = new EventEmitter();

// Says what arrived: the method, the number of bytes, and their digest.
async function echo(request, response) {
    const digest = crypto.createHash('sha256');
    let length = 0;
    for await (const piece of request) {
        length += piece.length;
        digest.update(piece);
    }
    response.end(JSON.stringify({ method: request.method, length, sha256: digest.digest('hex') }));
}

function range(request, response) {
    response.setHeader('Accept-Ranges', 'bytes');
    const wanted = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '');
    let body = text;
    if (wanted) {
        body = text.subarray(Number(wanted[1]), Number(wanted[2]) + 1);
        response.statusCode = 206;
        const [, first, last] = wanted;
        response.setHeader('Content-Range', `bytes ${first}-${last}/${text.length}`);
    }
    response.setHeader('Content-Length', body.length);
    response.end(request.method === 'HEAD' ? undefined : body);
}

// Each event is sent when the client has asked for it at /next, so that one that is held back on
// the way is never asked for the next.
async function events(request, response) {
    response.setHeader('Content-Type', 'text/event-stream');
    const name = new URL(request.url, 'http://origin').search;
    response.write(': begin\n\n');
    for (let number = 1; number <= 3; number += 1) {
        await new Promise((resolve) => asked.once(name, resolve));
        response.write(`data: ${number}\n\n`);
    }
    response.end();
}

// As a server of gRPC: the status is in the trailers.
async function grpc(request, response) {
    const pieces = [];
    for await (const piece of request) pieces.push(piece);
    response.setHeader('Content-Type', 'application/grpc');
    response.setHeader('Trailer', 'grpc-status, grpc-message');
    response.write(Buffer.concat(pieces));
    response.addTrailers({ 'grpc-status': '0', 'grpc-message': 'well' });
    response.end();
}

// Says which trailers the request had.
async function trailers(request, response) {
    for await (const _ of request);
    response.end(JSON.stringify(request.trailers));
}

const pages = {
    '/echo': echo,
    '/range': range,
    '/events': events,
    '/grpc': grpc,
    '/trailers': trailers,
    '/large': (request, response) => {
        response.setHeader('X-Sha256', sha256(large));
        response.end(large);
    },
    '/hints': (request, response) => {
        response.writeEarlyHints({ link: '</a.css>; rel=preload; as=style' }, () => {
            response.end('page');
        });
    },
    '/next': (request, response) => {
        asked.emit(new URL(request.url, 'http://origin').search);
        response.end();
    },
};

const server = http.createServer((request, response) => {
    const page = pages[request.url.split('?')[0]];
    // A client may go away in the middle.
    if (page) return Promise.resolve(page(request, response)).catch(() => response.destroy());
    response.statusCode = 404;
    response.end('no such page');
});
server.requestTimeout = 0;

try {
    const { WebSocketServer } = require('ws');
    const sockets = new WebSocketServer({ noServer: true, perMessageDeflate: true });
    server.on('upgrade', (request, socket, head) => {
        sockets.handleUpgrade(request, socket, head, (client) => {
            client.on('message', (data, binary) => client.send(data, { binary }));
        });
    });
} catch (error) {
    if (error.code !== 'MODULE_NOT_FOUND') throw error;
}

server.listen(0, '127.0.0.1', () => console.log(server.address().port));
