<?php
// A front controller, as frameworks have one.
$path = rawurldecode((string) parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH));
$path = strtolower(preg_replace('~/+~', '/', $path));
$reached = $path === '/v1/event' || str_starts_with($path, '/v1/event/');
echo $reached ? 'the event handler was reached' : 'another path';
