// Origins on Node.js, each on a port of its own. Prints `NAME: PORT` for each, then `ready`.
'use strict';
const http = require('node:http');
const path = require('node:path');
const url = require('node:url');

const REACHED = 'the event handler was reached';
const isEvent = (read) => {
    const lower = read.toLowerCase();
    return lower === '/v1/event' || lower.startsWith('/v1/event/');
};

// How each reads the path of a request target.
const readings = {
    'the target as it is': (target) => target.split('?')[0],
    'path.normalize': (target) => path.posix.normalize(target.split('?')[0]),
    'new URL': (target) => new URL(target, 'http://origin').pathname,
    'new URL, then decodeURIComponent and path.normalize': (target) =>
        path.posix.normalize(decodeURIComponent(new URL(target, 'http://origin').pathname)),
    'decodeURIComponent, then new URL': (target) =>
        new URL(decodeURIComponent(target.split('?')[0]), 'http://origin').pathname,
    'url.parse': (target) => url.parse(target).pathname ?? '',
};

const servers = Object.entries(readings).map(([name, read]) => [
    `Node, ${name}`,
    (request, response) => {
        let reached = false;
        try {
            reached = isEvent(read(request.url));
        } catch {
            response.statusCode = 400;
        }
        response.end(reached ? REACHED : 'another path');
    },
]);

// Adds the set-ups of a package, where it is installed.
function optional(name, add) {
    try {
        add();
    } catch (error) {
        if (error.code !== 'MODULE_NOT_FOUND') throw error;
        console.log(`${name} is missing`);
    }
}

optional('Express', () => {
    const express = require('express');
    const answer = (request, response) => response.end(REACHED);
    servers.push(['Express, app.get', express().get('/v1/event', answer)]);
    servers.push(['Express, app.get with a wildcard', express().get('/v1/event/(.*)', answer)]);
    servers.push(['Express, app.use', express().use('/v1/event', answer)]);
});
optional('fastify', () => {
    const fastify = require('fastify');
    const options = { ignoreTrailingSlash: true, ignoreDuplicateSlashes: true, caseSensitive: false };
    for (const routerOptions of [{}, options]) {
        let listener;
        const serverFactory = (handler) => {
            listener = handler;
            return http.createServer(handler);
        };
        const app = fastify({ serverFactory, routerOptions });
        for (const route of ['/v1/event', '/v1/event/*']) {
            app.get(route, (request, reply) => reply.send(REACHED));
        }
        const name = routerOptions === options ? 'fastify, lenient' : 'fastify';
        servers.push([name, (...both) => app.ready().then(() => listener(...both))]);
    }
});
optional('Hono', () => {
    const { Hono } = require('hono');
    const { getRequestListener } = require('@hono/node-server');
    for (const strict of [true, false]) {
        const app = new Hono({ strict });
        app.get('/v1/event/*', (context) => context.text(REACHED));
        servers.push([`Hono, strict ${strict}`, getRequestListener(app.fetch)]);
    }
});

let starting = servers.length;
for (const [name, handler] of servers) {
    const server = http.createServer(handler);
    server.listen(0, '127.0.0.1', () => {
        console.log(`${name}: ${server.address().port}`);
        starting -= 1;
        if (starting === 0) console.log('ready');
    });
}
