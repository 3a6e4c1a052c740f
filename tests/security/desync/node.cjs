// An origin on Node.js that says in a header what it was asked. Prints its name and port.
'use strict';
const http = require('node:http');

const server = http.createServer((request, response) => {
    request.resume().on('end', () => {
        response.setHeader('X-Asked', `${request.method} ${request.url}`);
        response.end('ok');
    });
});
server.listen(0, '127.0.0.1', () => console.log(`Node: ${server.address().port}\nready`));
