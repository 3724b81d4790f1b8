// Open pages of the built site in headless Chromium, light and dark: accessibility by axe-core, and requests to other servers.
//
//     npm install axe-core puppeteer-core        # in any folder; run the script from there
//     node PATH/docs/check_pages.mjs PATH/site [--all] [--screenshots FOLDER]
//
// Chromium is /usr/bin/chromium, or what CHROMIUM names. Without --all a page of each kind is opened. The exit code is 1 where
// axe-core finds a serious or critical fault, or a page asks another server for anything.
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { mkdir, readdir, readFile } from 'node:fs/promises';
import { extname, join, normalize } from 'node:path';

const require = createRequire(join(process.cwd(), 'index.js'));
const puppeteer = require('puppeteer-core');
const axe = await readFile(require.resolve('axe-core/axe.min.js'), 'utf8');

const KINDS = [
  '', 'tutorials/first_comparison/', 'guides/surgery/', 'guides/cost/', 'gallery/', 'gallery/what_plans_cost/', 'reference/',
  'reference/comparison/', 'reference/command_line/', 'catalogue/', 'attention/ulsam/', 'explanation/statistics/',
  'reports/flowers_ablation/', 'reports/reproduce/', 'faults/',
];
const TYPES = { '.html': 'text/html', '.js': 'text/javascript', '.css': 'text/css', '.json': 'application/json',
  '.svg': 'image/svg+xml', '.png': 'image/png', '.map': 'application/json' };

const [site, ...options] = process.argv.slice(2);
const shots = options.includes('--screenshots') ? options[options.indexOf('--screenshots') + 1] : null;
let pages = KINDS;
if (options.includes('--all')) {
  const files = await readdir(site, { recursive: true });
  pages = files.filter((name) => name.endsWith('index.html')).map((name) => name.slice(0, -'index.html'.length));
}
const server = createServer(async (request, response) => {
  let path = normalize(decodeURIComponent(new URL(request.url, 'http://localhost').pathname));
  if (path.endsWith('/')) path += 'index.html';
  try {
    const content = await readFile(join(site, path));
    response.writeHead(200, { 'content-type': TYPES[extname(path)] ?? 'application/octet-stream' }).end(content);
  } catch {
    response.writeHead(404).end();
  }
});
await new Promise((ready) => server.listen(0, '127.0.0.1', ready));
const home = `http://127.0.0.1:${server.address().port}/`;
const browser = await puppeteer.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', headless: true, args: ['--no-sandbox', '--disable-gpu'],
});
let faults = 0, minor = 0, foreign = 0, missing = 0;
for (const scheme of ['light', 'dark']) {
  const context = await browser.createBrowserContext();  // the theme keeps the scheme that it began with
  for (const name of pages) {
    const page = await context.newPage();
    page.on('request', (request) => {
      if (/^https?:/.test(request.url()) && !request.url().startsWith(home)) {
        foreign += 1;
        console.log(`asks another server: ${name || 'home'} ${request.url()}`);
      }
    });
    page.on('response', (response) => {
      if (response.status() >= 400) {
        missing += 1;
        console.log(`not found: ${name || 'home'} ${response.url()}`);
      }
    });
    await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: scheme }]);
    await page.setViewport({ width: 1280, height: 900 });
    await page.goto(home + name, { waitUntil: 'networkidle0', timeout: 120000 });
    await page.evaluate(axe);
    const found = await page.evaluate(() => axe.run({ resultTypes: ['violations'] }));
    for (const { id, impact, help, nodes } of found.violations) {
      const bad = impact === 'serious' || impact === 'critical';
      if (bad) faults += nodes.length; else minor += nodes.length;
      console.log(`${impact}: ${id}: ${help}: ${nodes.length} in ${name || 'home'}, ${scheme}`);
      if (bad) for (const node of nodes.slice(0, 3)) console.log(`    ${node.target}: ${node.html.slice(0, 150)}`);
      if (bad) for (const node of nodes.slice(0, 1)) console.log(`    ${node.failureSummary.replaceAll('\n', ' ').slice(0, 300)}`);
    }
    if (shots) {
      await mkdir(shots, { recursive: true });
      for (const width of [1280, 400]) {
        await page.setViewport({ width, height: 900 });
        await page.screenshot({ path: join(shots, `${(name || 'home').replaceAll('/', '_')}${scheme}_${width}.png`) });
      }
    }
    await page.close();
  }
  await context.close();
}
await browser.close();
server.close();
console.log(`${pages.length} pages, light and dark: ${faults} serious or critical faults, ${minor} lesser ones, ` +
  `${foreign} requests to other servers, ${missing} files not found`);
process.exit(faults || foreign || missing ? 1 : 0);
